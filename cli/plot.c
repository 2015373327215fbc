/* SPDX-License-Identifier: Apache-2.0 */
/* SVG by hand: coordinates in user units, which are pixels at the natural size; y grows downwards. */
#include "plot.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "input.h"

enum {
    PANEL_WIDTH = 470,
    PANEL_HEIGHT = 320,
    LEFT = 78, /* of a panel, for the numbers and the label of the y axis */
    RIGHT = 18,
    TOP = 92,    /* title, subtitle, panel titles */
    BOTTOM = 62, /* labels of the x axis */
    LEGEND_ROW = 20,
    LEGEND_COLUMN = 300,
    GRID_LINES = 5,
    WHISKER = 4,
    SHIFT = 12, /* between neighbouring lines */
    COLORS = 8,
    MOST_LEGEND = 256
};

/* Okabe and Ito's set, told apart by colour-blind people too. */
static const char *const colors[COLORS] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                           "#56B4E9", "#E69F00", "#000000", "#8C6D1F"};

static void write_text(const char *text, FILE *to)
{
    size_t bytes = strlen(text);
    for (size_t at = 0; at < bytes;) {
        size_t length = cli_utf8_sequence_bytes(text + at, bytes - at);
        unsigned char byte = (unsigned char)text[at];
        bool noncharacter = length == 3 && byte == 0xEF && (unsigned char)text[at + 1] == 0xBF &&
                            (unsigned char)text[at + 2] >= 0xBE; /* U+FFFE and U+FFFF */
        if (length == 0 || noncharacter || (byte < 0x20 && byte != '\t'))
            fputc('?', to);
        else if (byte == '&')
            fputs("&amp;", to);
        else if (byte == '<')
            fputs("&lt;", to);
        else if (byte == '>')
            fputs("&gt;", to);
        else if (byte == '"')
            fputs("&quot;", to);
        else
            fwrite(text + at, 1, length, to);
        at += length > 0 ? length : 1;
    }
}

static void write_label(FILE *to, double x, double y, const char *attributes, const char *text)
{
    fprintf(to, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, attributes);
    write_text(text, to);
    fputs("</text>\n", to);
}

/* 1, 2, 2.5 or 5 times a power of ten, so that GRID_LINES steps reach the highest value. */
static double grid_step(double highest)
{
    static const double steps[] = {1, 2, 2.5, 5, 10};
    double least = highest / GRID_LINES;
    if (!(least > 0))
        return 0.2;
    double power = pow(10, floor(log10(least)));
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        if (steps[i] * power >= least * (1 - 1e-9))
            return steps[i] * power;
    }
    return 10 * power;
}

static double highest_value(const plot *p)
{
    double highest = 0;
    for (size_t i = 0; i < p->panel_count; i++) {
        for (size_t k = 0; k < p->panels[i].count; k++) {
            const plot_line *line = &p->panels[i].lines[k];
            for (size_t n = 0; n < line->count; n++)
                highest = fmax(highest, fmax(line->points[n].y, line->points[n].high));
        }
    }
    return highest;
}

typedef struct frame {
    double left, top, width, height; /* of the panel's plotting area */
    double step;                     /* of the grid, in the data's unit */
    size_t places;
} frame;

static double x_of(const frame *f, size_t place)
{
    return f->left + f->width * ((double)place + 0.5) / (double)f->places;
}

static double y_of(const frame *f, double value)
{
    return f->top + f->height * (1 - value / (f->step * GRID_LINES));
}

static void write_axes(const plot *p, const plot_panel *panel, const frame *f, FILE *to)
{
    char number[32];
    for (int i = 0; i <= GRID_LINES; i++) {
        double y = y_of(f, f->step * i);
        fprintf(to, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", f->left, y,
                f->left + f->width, y, i == 0 ? "#444444" : "#DDDDDD");
        snprintf(number, sizeof number, "%.4g", f->step * i);
        write_label(to, f->left - 8, y + 4, "text-anchor=\"end\" class=\"tick\"", number);
    }
    /* Many places: every so many gets a label, so that they do not run into each other. */
    size_t every = (p->place_count + 11) / 12;
    for (size_t i = 0; i < p->place_count; i++) {
        double x = x_of(f, i), y = f->top + f->height;
        fprintf(to, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#444444\"/>\n", x, y, x, y + 5);
        if (i % every == 0)
            write_label(to, x, y + 20, "text-anchor=\"middle\" class=\"tick\"", p->places[i]);
    }
    write_label(to, f->left + f->width / 2, f->top - 12, "text-anchor=\"middle\" class=\"panel\"", panel->title);
    write_label(to, f->left + f->width / 2, f->top + f->height + 44, "text-anchor=\"middle\" class=\"axis\"",
                p->x_label);
    double x = f->left - LEFT + 20, y = f->top + f->height / 2;
    fprintf(to,
            "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" class=\"axis\" transform=\"rotate(-90 %.1f %.1f)\">", x,
            y, x, y);
    write_text(p->y_label, to);
    fputs("</text>\n", to);
}

static void write_whisker(const frame *f, const plot_point *point, const char *color, double shift, FILE *to)
{
    double x = x_of(f, point->place) + shift, low = y_of(f, point->low), high = y_of(f, point->high);
    if (!(point->high > point->low))
        return;
    fprintf(to,
            "<path d=\"M%.1f %.1fV%.1fM%.1f %.1fH%.1fM%.1f %.1fH%.1f\" fill=\"none\" stroke=\"%s\" "
            "stroke-width=\"1\"/>\n",
            x, low, high, x - WHISKER, low, x + WHISKER, x - WHISKER, high, x + WHISKER, color);
}

/* Lines are shifted a little against each other, so that whiskers at one place can be told apart. */
static void write_line(const plot_panel *panel, size_t number, const frame *f, FILE *to)
{
    const plot_line *line = &panel->lines[number];
    const char *color = colors[line->color % COLORS];
    double room = fmin(f->width / (double)f->places * 0.4, (double)SHIFT * (double)(panel->count - 1));
    double shift = panel->count > 1 ? room * ((double)number / (double)(panel->count - 1) - 0.5) : 0;
    for (size_t i = 0; i < line->count; i++)
        write_whisker(f, &line->points[i], color, shift, to);
    if (line->count > 1) {
        fputs("<polyline points=\"", to);
        for (size_t i = 0; i < line->count; i++)
            fprintf(to, "%s%.1f,%.1f", i > 0 ? " " : "", x_of(f, line->points[i].place) + shift,
                    y_of(f, line->points[i].y));
        fprintf(to, "\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"%s/>\n", color,
                line->dashed ? " stroke-dasharray=\"6 4\"" : "");
    }
    for (size_t i = 0; i < line->count; i++)
        fprintf(to, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\" stroke=\"%s\" stroke-width=\"1.5\"/>\n",
                x_of(f, line->points[i].place) + shift, y_of(f, line->points[i].y), line->dashed ? "#FFFFFF" : color,
                color);
}

/* Each name once, in the order in which the panels bring them. */
static size_t gather_legend(const plot *p, const plot_line **entries)
{
    size_t count = 0;
    for (size_t i = 0; i < p->panel_count; i++) {
        for (size_t k = 0; k < p->panels[i].count; k++) {
            const plot_line *line = &p->panels[i].lines[k];
            bool there = false;
            for (size_t n = 0; n < count; n++)
                there = there || strcmp(entries[n]->name, line->name) == 0;
            if (!there && count < MOST_LEGEND)
                entries[count++] = line;
        }
    }
    return count;
}

static void write_legend(const plot_line *const *entries, size_t count, size_t columns, double top, FILE *to)
{
    for (size_t i = 0; i < count; i++) {
        const plot_line *line = entries[i];
        const char *color = colors[line->color % COLORS];
        double x = LEFT + (double)(i % columns) * LEGEND_COLUMN;
        double y = top + (double)(i / columns) * LEGEND_ROW;
        fprintf(to, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"2\"%s/>\n", x,
                y, x + 28, y, color, line->dashed ? " stroke-dasharray=\"6 4\"" : "");
        fprintf(to, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\" stroke=\"%s\" stroke-width=\"1.5\"/>\n",
                x + 14, y, line->dashed ? "#FFFFFF" : color, color);
        write_label(to, x + 36, y + 4, "class=\"tick\"", line->name);
    }
}

void plot_write(const plot *p, FILE *to)
{
    const plot_line *entries[MOST_LEGEND];
    size_t entry_count = gather_legend(p, entries);
    double width = (double)p->panel_count * PANEL_WIDTH;
    width = width < 640 ? 640 : width; /* room for the title */
    size_t columns = (size_t)((width - LEFT) / LEGEND_COLUMN), rows = (entry_count + columns - 1) / columns;
    double height = TOP + PANEL_HEIGHT + BOTTOM + (double)rows * LEGEND_ROW + 16;
    fprintf(to,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\">\n"
            "<style>text{font-family:Helvetica,Arial,sans-serif;fill:#222222}.title{font-size:17px;font-weight:bold}"
            ".sub{font-size:12px;fill:#555555}.panel{font-size:14px;font-weight:bold}.axis{font-size:13px}"
            ".tick{font-size:12px}</style>\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"#FFFFFF\"/>\n",
            width, height, width, height);
    write_label(to, 20, 28, "class=\"title\"", p->title);
    write_label(to, 20, 48, "class=\"sub\"", p->subtitle);
    double panel_width = width / (double)(p->panel_count > 0 ? p->panel_count : 1);
    for (size_t i = 0; i < p->panel_count; i++) {
        frame f = {.left = (double)i * panel_width + LEFT,
                   .top = TOP,
                   .width = panel_width - LEFT - RIGHT,
                   .height = PANEL_HEIGHT,
                   .step = grid_step(highest_value(p)),
                   .places = p->place_count > 0 ? p->place_count : 1};
        write_axes(p, &p->panels[i], &f, to);
        for (size_t k = 0; k < p->panels[i].count; k++)
            write_line(&p->panels[i], k, &f, to);
    }
    write_legend(entries, entry_count, columns, TOP + PANEL_HEIGHT + BOTTOM + 8, to);
    fputs("</svg>\n", to);
}
