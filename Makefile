# SPDX-License-Identifier: Apache-2.0
# A thin front for CMake and CTest. Every target sets up what it needs.
BUILD ?= build
JOBS ?= $(shell nproc)
PREFIX ?= /usr/local
MODEL ?= models/penstock-tales
PROMPT ?= Once upon a time, in the valley of
CMAKE_FLAGS ?=
TARGET ?= all

.PHONY: build run test test-gpu test-gpu-sanitize test-peers test-long asan ubsan tsan fuzz bench wheel lint format install clean

build:
	@scripts/setup.sh build
	@cmake -S . -B $(BUILD) -G Ninja -DCMAKE_INSTALL_PREFIX=$(PREFIX) $(CMAKE_FLAGS) >$(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }
	@rm -f $(BUILD).log
	@ninja -C $(BUILD) -j $(JOBS) --quiet $(TARGET)

run: build
	$(BUILD)/penstock generate $(MODEL) --resident 0 --max-new-tokens 200 --prompt "$(PROMPT)"

test:
	@scripts/setup.sh test
	@$(MAKE) --no-print-directory build
	@scripts/run_tests.sh $(BUILD)

# The tests of devices on the first GPU, with the CUDA plugin from these sources (needs nvcc). Where there is no GPU each says so
# and is counted.
test-gpu:
	@scripts/setup.sh test
	@$(MAKE) --no-print-directory build CMAKE_FLAGS="$(CMAKE_FLAGS) -DPST_CUDA=ON"
	@scripts/run_tests.sh $(BUILD) -L '^gpu$$'

# Every operator under compute-sanitizer: reads and writes outside of memory, threads that race for shared memory or miss a
# barrier.
test-gpu-sanitize:
	@$(MAKE) --no-print-directory build CMAKE_FLAGS="$(CMAKE_FLAGS) -DPST_CUDA=ON"
	@scripts/sanitize_gpu.sh $(BUILD)

test-peers: build
	@scripts/setup.sh peers
	@python3 tests/peers/run.py $(BUILD)/penstock

# The suite, the sanitizers' suites (address with undefined, thread), millions of random I/O operations against a model in
# memory, a batch job of 1,000 requests that is killed 20 times, the Python package's slow tests (12 GB of the drive), and
# ten minutes of fuzzing per target: well over an hour.
test-long: test asan tsan
	@PST_TEST_OPERATIONS=3000000 $(BUILD)/tests/property/test_io_model
	@PST_TEST_REQUESTS=1000 PST_TEST_KILLS=20 $(BUILD)/tests/cli/cli_batch
	@scripts/setup.sh peers
	@PST_TEST_LONG=1 python3 tests/peers/run.py $(BUILD)/penstock -m slow
	@$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=600

# The Python package for other machines, with the libraries that it needs inside.
wheel:
	@scripts/setup.sh build
	@scripts/setup.sh peers
	@scripts/build_wheel.sh

asan:
	@$(MAKE) --no-print-directory test BUILD=$(BUILD)-asan CMAKE_FLAGS="-DPST_SANITIZE=address,undefined"

ubsan:
	@$(MAKE) --no-print-directory test BUILD=$(BUILD)-ubsan CMAKE_FLAGS="-DPST_SANITIZE=undefined"

tsan:
	@$(MAKE) --no-print-directory test BUILD=$(BUILD)-tsan CMAKE_FLAGS="-DPST_SANITIZE=thread"

FUZZ_SECONDS ?= 60
fuzz:
	@scripts/setup.sh fuzz
	@$(MAKE) --no-print-directory build BUILD=$(BUILD)-fuzz TARGET=fuzzers \
	    CMAKE_FLAGS="-DPST_FUZZ=ON -DPST_SANITIZE=address,undefined -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++"
	@scripts/run_fuzz.sh $(BUILD)-fuzz $(FUZZ_SECONDS)

bench:
	@scripts/setup.sh bench
	@$(MAKE) --no-print-directory build CMAKE_FLAGS="$(CMAKE_FLAGS) -DPST_BENCH=ON"
	@echo "benchmarks are in $(BUILD)/bench; see docs/benchmarks/README.md for how each is run"

lint:
	@scripts/setup.sh lint
	@git ls-files '*.c' '*.h' | xargs clang-format --dry-run -Werror
	@cppcheck --quiet --error-exitcode=1 --enable=warning,portability --inline-suppr --suppress=missingIncludeSystem \
	    -Iinclude -Isrc -D_GNU_SOURCE --std=c11 src cli
	@tests/check_layers.sh

format:
	@scripts/setup.sh lint
	@git ls-files '*.c' '*.h' | xargs clang-format -i

install: build
	@cmake --install $(BUILD)

clean:
	rm -rf $(BUILD) $(BUILD)-asan $(BUILD)-ubsan $(BUILD)-tsan $(BUILD)-fuzz
