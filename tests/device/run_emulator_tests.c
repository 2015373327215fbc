/* SPDX-License-Identifier: Apache-2.0 */
/* The program around test_emulator.cu, which is a library: the emulator takes all of a library's thread-local storage for
 * its kernels' shared memory. */
int run_emulator_tests(void);

int main(void)
{
    return run_emulator_tests();
}
