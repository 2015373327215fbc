/* SPDX-License-Identifier: Apache-2.0 */
/* Shared libraries that are loaded at run time. Nothing is looked for along search paths: whoever loads one names its file. */
#ifndef PST_OS_LIBRARY_H
#define PST_OS_LIBRARY_H

#include "penstock/types.h"

typedef struct pst_library pst_library;

/* Loads a file, a name with a slash in it, with everything that it needs; its symbols stay its own. Fails in one line when it
 * is no library of this machine, or needs what is not there. Code of it runs during the call. */
int pst_library_open(const char *path, pst_library **out, pst_error *err);
/* A symbol's address; NULL: it has none of that name. Valid while the library is loaded. */
void *pst_library_symbol(pst_library *library, const char *name);
/* From here on it stays loaded until the process ends, closed or not: for libraries that leave behind threads or functions to
 * be called at exit. */
int pst_library_keep(const char *path, pst_error *err);
void pst_library_close(pst_library *library); /* NULL is fine */

/* The folder of the file that this code is in, libpenstock.so or the program itself; no slash at its end. -ENAMETOOLONG when
 * it does not fit. */
int pst_library_own_folder(char *out, size_t out_bytes, pst_error *err);

#endif
