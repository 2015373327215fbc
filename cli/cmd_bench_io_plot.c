/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench io's chart: the first setting that varies, in the order of the table below, is the x axis; every combination of
 * the others is a line; reading and writing are panels. fio's medians are dashed.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/heap.h"
#include "base/stats.h"
#include "cmd_bench_io.h"
#include "plot.h"

enum { DIMENSIONS = 5, LABEL_BYTES = 40, NAME_BYTES = 160 };

typedef struct dimension {
    const char *noun, *axis; /* "depth", "queue depth (I/Os in flight per worker)" */
    bool is_size;
} dimension;

enum { BLOCK, DEPTH, WORKERS, SIZE, ENGINE };

static const dimension dimensions[DIMENSIONS] = {
    {"block", "block size (bytes of one I/O)", true},
    {"depth", "queue depth (I/Os in flight per worker)", false},
    {"workers", "workers (threads per transfer)", false},
    {"size", "bytes of one transfer", true},
    {"engine", "I/O engine", false},
};

static void value_text(const io_config *config, int which, char *text, size_t text_bytes)
{
    const pst_io_bench_info *info = &config->info;
    const uint64_t values[] = {info->io.block_size, info->io.queue_depth, info->io.workers, info->io_size};
    if (which == ENGINE)
        snprintf(text, text_bytes, "%s", config->engine_name);
    else if (dimensions[which].is_size)
        io_size_text(values[which], text, text_bytes);
    else
        snprintf(text, text_bytes, "%" PRIu64, values[which]);
}

static uint64_t sort_key(const io_config *config, int which, size_t index)
{
    const pst_io_bench_info *info = &config->info;
    const uint64_t values[] = {info->io.block_size, info->io.queue_depth, info->io.workers, info->io_size};
    return which == ENGINE ? index : values[which];
}

typedef struct chart {
    const io_job *job;
    bool varies[DIMENSIONS];
    int axis;
    char (*places)[LABEL_BYTES];
    const char **place_texts;
    size_t place_count;
    char (*names)[NAME_BYTES]; /* of lines: one per cell at most, fio's behind ours */
    size_t name_count;
    plot_line *lines;
    plot_point *points;
} chart;

static void find_dimensions(chart *c)
{
    char first[LABEL_BYTES], other[LABEL_BYTES];
    c->axis = -1;
    for (int d = 0; d < DIMENSIONS; d++) {
        value_text(c->job->cells[0].config, d, first, sizeof first);
        for (size_t i = 1; i < c->job->cell_count; i++) {
            value_text(c->job->cells[i].config, d, other, sizeof other);
            c->varies[d] = c->varies[d] || strcmp(first, other) != 0;
        }
        if (c->varies[d] && c->axis < 0)
            c->axis = d;
    }
    if (c->axis < 0)
        c->axis = BLOCK;
}

/* Distinct values of the axis, rising. */
static void find_places(chart *c)
{
    const io_job *job = c->job;
    uint64_t last = 0;
    for (;;) {
        const io_config *next = NULL;
        uint64_t key = UINT64_MAX;
        for (size_t i = 0; i < job->cell_count; i++) {
            uint64_t own = sort_key(job->cells[i].config, c->axis, i);
            if ((c->place_count == 0 || own > last) && own < key) {
                key = own;
                next = job->cells[i].config;
            }
        }
        if (next == NULL)
            return;
        last = key;
        value_text(next, c->axis, c->places[c->place_count], LABEL_BYTES);
        bool there = false; /* engines have one key per cell */
        for (size_t p = 0; p < c->place_count; p++)
            there = there || strcmp(c->places[p], c->places[c->place_count]) == 0;
        if (there)
            continue;
        c->place_texts[c->place_count] = c->places[c->place_count];
        c->place_count++;
    }
}

static size_t place_of(const chart *c, const io_config *config)
{
    char text[LABEL_BYTES];
    value_text(config, c->axis, text, sizeof text);
    size_t place = 0;
    while (place + 1 < c->place_count && strcmp(c->places[place], text) != 0)
        place++;
    return place;
}

/* "io_uring, depth 32": what varies besides the axis. */
static void line_name(const chart *c, const io_config *config, bool fio, char *name)
{
    size_t used = (size_t)snprintf(name, NAME_BYTES, "%s", fio ? "fio" : "penstock");
    for (int d = DIMENSIONS - 1; d >= 0; d--) {
        char text[LABEL_BYTES];
        if (!c->varies[d] || d == c->axis)
            continue;
        value_text(config, d, text, sizeof text);
        used += (size_t)snprintf(name + used, NAME_BYTES - used, d == ENGINE ? ", %s%s" : ", %s %s",
                                 d == ENGINE ? "" : dimensions[d].noun, text);
        used = used < NAME_BYTES ? used : NAME_BYTES - 1;
    }
}

/* The number of the line's colour: that of the configuration, whether ours or fio's. */
static size_t color_of(chart *c, const char *name)
{
    const char *rest = strchr(name, ',');
    for (size_t i = 0; i < c->name_count; i++) {
        const char *other = strchr(c->names[i], ',');
        if ((rest == NULL && other == NULL) || (rest != NULL && other != NULL && strcmp(rest, other) == 0))
            return i;
    }
    snprintf(c->names[c->name_count], NAME_BYTES, "%s", name);
    return c->name_count++;
}

static int compare_points(const void *a, const void *b)
{
    const plot_point *x = a, *y = b;
    return (x->place > y->place) - (x->place < y->place);
}

static plot_point make_point(const chart *c, const io_cell *cell, bool fio)
{
    io_summary s;
    io_summarize(cell, &s);
    plot_point point = {
        .place = place_of(c, cell->config), .y = s.median / 1e9, .low = s.min / 1e9, .high = s.max / 1e9};
    if (!fio)
        return point;
    point.y = s.fio_median / 1e9;
    point.low = point.high = point.y;
    for (size_t i = 0; i < cell->count; i++) {
        double rate = cell->fio[i].bytes_per_second / 1e9;
        point.low = rate < point.low ? rate : point.low;
        point.high = rate > point.high ? rate : point.high;
    }
    return point;
}

/* Lines of one panel, made from the cells of one kind; returns how many. `names` and `points` have room for all. */
static size_t make_lines(chart *c, pst_io_kind op, bool fio, plot_line *lines, char (*names)[NAME_BYTES],
                         plot_point *points)
{
    size_t count = 0, used = 0;
    for (size_t i = 0; i < c->job->cell_count; i++) {
        char name[NAME_BYTES];
        line_name(c, c->job->cells[i].config, fio, name);
        bool there = c->job->cells[i].op != op;
        for (size_t k = 0; k < count; k++)
            there = there || strcmp(names[k], name) == 0;
        if (there)
            continue;
        strcpy(names[count], name);
        plot_line *line = &lines[count];
        *line = (plot_line){.name = names[count], .color = color_of(c, name), .dashed = fio, .points = points + used};
        for (size_t k = i; k < c->job->cell_count; k++) {
            char other[NAME_BYTES];
            line_name(c, c->job->cells[k].config, fio, other);
            if (c->job->cells[k].op == op && strcmp(other, name) == 0)
                points[used + line->count++] = make_point(c, &c->job->cells[k], fio);
        }
        qsort(points + used, line->count, sizeof *points, compare_points);
        used += line->count;
        count++;
    }
    return count;
}

/* Memory for one panel, by the most that it may need. */
typedef struct panel_room {
    plot_line *lines;
    plot_point *points;
    char (*names)[NAME_BYTES];
} panel_room;

static bool take_room(panel_room *room, size_t cells)
{
    room->lines = pst_heap_calloc(2 * cells, sizeof *room->lines);
    room->points = pst_heap_calloc(2 * cells, sizeof *room->points);
    room->names = pst_heap_calloc(2 * cells, sizeof *room->names);
    return room->lines != NULL && room->points != NULL && room->names != NULL;
}

static void free_room(panel_room *room)
{
    pst_heap_free(room->lines);
    pst_heap_free(room->points);
    pst_heap_free(room->names);
}

static size_t fill_panel(chart *c, pst_io_kind op, panel_room *room)
{
    size_t cells = c->job->cell_count;
    size_t count = make_lines(c, op, false, room->lines, room->names, room->points);
    if (c->job->cells[0].fio != NULL)
        count += make_lines(c, op, true, room->lines + count, room->names + cells, room->points + cells);
    return count;
}

/* What does not vary, for the line below the title. */
static void subtitle(const chart *c, char *text, size_t text_bytes)
{
    const io_config *config = c->job->cells[0].config;
    size_t used = (size_t)snprintf(text, text_bytes, "%s, median, min and max of %zu",
                                   config->info.direct ? "direct I/O" : "through the page cache", c->job->loops);
    for (int d = 0; d < DIMENSIONS && used < text_bytes; d++) {
        char value[LABEL_BYTES];
        if (c->varies[d])
            continue;
        value_text(config, d, value, sizeof value);
        used += (size_t)snprintf(text + used, text_bytes - used, d == ENGINE ? ", %s%s" : ", %s %s",
                                 d == ENGINE ? "" : dimensions[d].noun, value);
    }
}

static int write_chart(chart *c, FILE *to, pst_error *err)
{
    static const pst_io_kind ops[] = {PST_IO_READ, PST_IO_WRITE};
    static const char *const titles[] = {"read", "write"};
    panel_room rooms[2] = {{NULL}, {NULL}};
    plot_panel panels[2];
    size_t panel_count = 0;
    char text[256];
    int status = 0;
    for (size_t i = 0; i < 2 && status >= 0; i++) {
        size_t cells = 0;
        for (size_t k = 0; k < c->job->cell_count; k++)
            cells += c->job->cells[k].op == ops[i];
        if (cells == 0)
            continue;
        panel_room *room = &rooms[panel_count];
        if (!take_room(room, c->job->cell_count))
            status = pst_fail_memory(err, "a chart", c->job->cell_count * sizeof *room->names);
        else
            panels[panel_count++] =
                (plot_panel){.title = titles[i], .lines = room->lines, .count = fill_panel(c, ops[i], room)};
    }
    subtitle(c, text, sizeof text);
    plot p = {.title = c->job->cells[0].fio != NULL ? "penstock bench io beside fio" : "penstock bench io",
              .subtitle = text,
              .x_label = dimensions[c->axis].axis,
              .y_label = "rate (GB/s, 10^9 bytes)",
              .places = c->place_texts,
              .place_count = c->place_count,
              .panels = panels,
              .panel_count = panel_count};
    if (status >= 0)
        plot_write(&p, to);
    free_room(&rooms[0]);
    free_room(&rooms[1]);
    return status;
}

static int draw(const void *user, FILE *to, pst_error *err)
{
    const io_job *job = user;
    chart c = {.job = job};
    size_t cells = job->cell_count;
    c.places = pst_heap_calloc(cells + 1, sizeof *c.places);
    c.place_texts = pst_heap_calloc(cells + 1, sizeof *c.place_texts);
    c.names = pst_heap_calloc(2 * cells, sizeof *c.names);
    int status;
    if (c.places == NULL || c.place_texts == NULL || c.names == NULL) {
        status = pst_fail_memory(err, "a chart", cells * sizeof *c.names);
    } else {
        find_dimensions(&c);
        find_places(&c);
        status = write_chart(&c, to, err);
    }
    pst_heap_free(c.places);
    pst_heap_free(c.place_texts);
    pst_heap_free(c.names);
    return status;
}

int io_plot_write(const io_job *job, const char *path, pst_error *err)
{
    return plot_file_write(path, draw, job, err);
}
