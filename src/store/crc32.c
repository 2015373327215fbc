/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Joining: with polynomials over GF(2) modulo the CRC's own, crc(A B) = crc(A) * x^(8 |B|) + crc(B); the start value and
 * the final inversion cancel out. Bit 31 of a word is the coefficient of x^0, as in the CRC itself. A power takes at most
 * 128 products of 32 steps, so there is no table.
 */
#include "store/crc32.h"

#include <isa-l/crc.h>

#define POLYNOMIAL UINT32_C(0xedb88320) /* 0x04C11DB7 with its bits in this order */
#define X_TO_0     UINT32_C(0x80000000)
#define X_TO_8     UINT32_C(0x00800000)

static uint32_t multiply(uint32_t a, uint32_t b)
{
    uint32_t product = 0;
    for (; a != 0; a <<= 1) { /* from x^0 up: b is b * x^i */
        if (a & X_TO_0)
            product ^= b;
        b = b & 1 ? b >> 1 ^ POLYNOMIAL : b >> 1;
    }
    return product;
}

#ifdef __x86_64__
/* ISA-L leaves the upper halves of the vector registers in use. Code that knows only the lower ones, such as libxxhash's, then
 * runs at a third of its speed. */
__attribute__((target("avx"))) static void clear_upper_halves(void)
{
    __builtin_ia32_vzeroupper();
}
#endif

uint32_t pst_crc32(uint32_t crc, const void *data, size_t bytes)
{
    if (bytes == 0)
        return crc;
    crc = crc32_gzip_refl(crc, data, bytes);
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx"))
        clear_upper_halves();
#endif
    return crc;
}

uint32_t pst_crc32_join(uint32_t a, uint32_t b, uint64_t b_bytes)
{
    uint32_t power = X_TO_0;
    for (uint32_t square = X_TO_8; b_bytes > 0; b_bytes >>= 1) {
        if (b_bytes & 1)
            power = multiply(power, square);
        square = multiply(square, square);
    }
    return multiply(a, power) ^ b;
}
