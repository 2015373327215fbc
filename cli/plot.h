/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Line charts as SVG: panels side by side with common axes, lines with whiskers, a legend. The places on the x axis are
 * evenly spaced, one for each label, which suits settings that double from one to the next.
 */
#ifndef PENSTOCK_CLI_PLOT_H
#define PENSTOCK_CLI_PLOT_H

#include <stdbool.h>
#include <stdio.h>

#include "penstock/types.h"

typedef struct plot_point {
    size_t place; /* on the x axis */
    double y, low, high;
} plot_point;

typedef struct plot_line {
    const char *name; /* in the legend; lines of the same name in several panels share one entry */
    size_t color;     /* any number; the same number, the same colour */
    bool dashed;
    const plot_point *points; /* by rising place */
    size_t count;
} plot_line;

typedef struct plot_panel {
    const char *title;
    const plot_line *lines;
    size_t count;
} plot_panel;

typedef struct plot {
    const char *title, *subtitle;
    const char *x_label, *y_label; /* with units */
    const char *const *places;     /* labels of the x axis */
    size_t place_count;
    const plot_panel *panels;
    size_t panel_count;
} plot;

/* Texts may hold anything: they are escaped, and bytes that are no UTF-8 or forbidden in XML become '?'. What fails
 * while writing shows in ferror(to). */
void plot_write(const plot *p, FILE *to);

/* Whether a chart can be written there is found out before the work. */
int plot_file_check(const char *path, pst_error *err);
/* Writes what `draw` draws, under a name of its own first. */
typedef int plot_draw(const void *user, FILE *to, pst_error *err);
int plot_file_write(const char *path, plot_draw *draw, const void *user, pst_error *err);

#endif
