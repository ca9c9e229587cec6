// Rows in ggml's formats of blocks, made by ggml's own reference functions:
//   cc -O2 -ffp-contract=off -I GGML/include -I GGML/src reference.c GGML/src/ggml-quants.c -lm -o reference
//   reference FORMAT < floats > bytes
// GGML is the folder ggml of llama.cpp's sources. FORMAT is q8_0, q6_k, q5_0, q4_0, tq2_0 or q2_0; the
// floats are f32, and their number is a multiple of 256.
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-quants.h"

// What the source needs of the rest of ggml.
void ggml_abort(const char *file, int line, const char *format, ...) {
    (void) format;
    fprintf(stderr, "%s:%d\n", file, line);
    abort();
}
void ggml_critical_section_start(void) {}
void ggml_critical_section_end(void) {}
size_t ggml_row_size(enum ggml_type type, int64_t n) { (void) type; (void) n; return 0; }
size_t ggml_type_size(enum ggml_type type) { (void) type; return 0; }
const char *ggml_type_name(enum ggml_type type) { (void) type; return ""; }
void ggml_log_internal(enum ggml_log_level level, const char *format, ...) { (void) level; (void) format; }

int main(int argc, char **argv) {
    static float x[256];
    static unsigned char y[1024];
    const char *format = argc > 1 ? argv[1] : "";
    while (fread(x, sizeof x, 1, stdin) == 1) {
        size_t bytes = 0;
        if (!strcmp(format, "q8_0")) { quantize_row_q8_0_ref(x, (void *) y, 256); bytes = 8 * 34; }
        if (!strcmp(format, "q6_k")) { quantize_row_q6_K_ref(x, (void *) y, 256); bytes = 210; }
        if (!strcmp(format, "q5_0")) { quantize_row_q5_0_ref(x, (void *) y, 256); bytes = 8 * 22; }
        if (!strcmp(format, "q4_0")) { quantize_row_q4_0_ref(x, (void *) y, 256); bytes = 8 * 18; }
        if (!strcmp(format, "tq2_0")) { quantize_row_tq2_0_ref(x, (void *) y, 256); bytes = 66; }
#ifdef QK2_0
        if (!strcmp(format, "q2_0")) { quantize_row_q2_0_ref(x, (void *) y, 256); bytes = 256 / QK2_0 * sizeof(block_q2_0); }
#endif
        if (!bytes || fwrite(y, bytes, 1, stdout) != 1) return 1;
    }
    return 0;
}
