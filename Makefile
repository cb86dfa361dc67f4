# GPT-2 training in NVFP4. The two commands that matter first:
#
#   make run        get a text, build, train on it, print a table and draw a plot (2 minutes on 2 cores)
#   make test       every test that this machine can run
#
# `make` alone builds every program that this machine can build. Also: headers (each compiles
# alone), cuda-all (all CUDA code for every supported GPU), fat (one GPU program for all of them),
# bench, lines, clean, and print-NAME, which shows what a variable below came out as.

# -ffp-contract=off, and no -Ofast: fused or reordered operations change last bits, and the last bit
#     decides a tie between two FP4 codes.
# -fno-math-errno: sqrtf need not set errno, so the compiler may vectorize it; no value changes.
# -march=native: the compiler's vectors as wide as this CPU's.
# -D_POSIX_C_SOURCE: -std=c11 alone hides mmap, fsync, glob and clock_gettime.
# -MMD -MP: write the included headers into a .d file beside the output; make reads it next time.
CC = gcc
CFLAGS = -std=c11 -O3 -march=native -ffp-contract=off -fno-math-errno -fopenmp \
         -D_POSIX_C_SOURCE=200809L -Wall -Wextra -I.
DEPENDENCIES = -MMD -MP -MT $@ -MF build/$(subst /,_,$@).d

# OpenBLAS does the C program's matrix products. Debian has it in two builds; the one with threads
# of its own fights with OpenMP's for the cores (measured 20 times slower with 2 cores) and is the
# one that the loader prefers when both are installed. The rpath insists on the OpenMP build.
OPENBLAS := $(firstword $(wildcard /usr/lib/*/openblas-openmp))
LIBS = $(if $(OPENBLAS),-L$(OPENBLAS) -Xlinker -rpath -Xlinker $(OPENBLAS)) -lopenblas -lm

# MPI, for more than one rank; without it ranks connect by sockets. Open MPI's compiler wrapper knows its
# flags. --as-needed: programs that never call it do not load it.
MPI_CFLAGS := $(shell mpicc --showme:compile 2>/dev/null || pkg-config --cflags ompi-c 2>/dev/null)
MPI_LIBS   := $(shell mpicc --showme:link 2>/dev/null || pkg-config --libs ompi-c 2>/dev/null)
ifneq ($(MPI_LIBS),)
CFLAGS += -DLLMC_MPI $(MPI_CFLAGS)
LIBS   += -Xlinker --as-needed $(MPI_LIBS)
endif

# The compute capability, without its dot (90), of the first GPU that can run our kernels: 8.0 or
# newer. Empty if there is none. The pattern keeps out what nvidia-smi prints in place of a number
# when it fails.
comma := ,
GPU := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | \
               awk -F. '/^[0-9]+\.[0-9]+$$/ && $$1 >= 8 { print $$1 $$2; exit }')

# What to compile for: this machine's GPU, else Hopper. The suffix a adds the instructions that
# exist on one architecture only (wgmma on 9.0, block-scaled FP4 on 10.x and 12.0).
ARCH := $(or $(GPU),90)
ARCH := $(ARCH)$(if $(filter 90 100 103 120 121,$(ARCH)),a)
ARCHS_ALL = $(foreach arch,80 90a 100a 103a 120a,$(if $(filter compute_$(arch:a=),$(NVCC_ARCHS)),$(arch)))
NVCC_ARCHS = $(shell $(NVCC) --list-gpu-arch 2>/dev/null)       # 103 and 121 came with CUDA 12.9
gencode = $(foreach arch,$(1),-gencode arch=compute_$(arch),code=sm_$(arch))

# `make fat`: machine code for these (8.6 and 8.9 run that of 8.0), and PTX, from which the driver
# makes machine code for a GPU that has none in the file: 11.0, 12.1 and newer. It translates PTX
# for any GPU not older than what the PTX is for; with the suffix a, for that architecture alone.
# 11.0 and 12.1 get from 100 nearly what compiling for them gives; from 80, 8 % more attention code.
FAT_PTX = 100
FAT_GENCODE = $(call gencode,$(ARCHS_ALL)) -gencode arch=compute_$(FAT_PTX),code=compute_$(FAT_PTX)

# No --use_fast_math: it changes the last bit of every tenth inverse scale. -ffp-contract=off is for
# the host code, as above (ARM CPUs would fuse). 177 warns of unused functions; every program that
# includes a header uses only some of it. The pragmas that g++ does not know are nvcc's "unroll".
# -ldl: NVML is opened at run time, if it is there. The rpath: few systems tell the loader where
# CUDA is.
NVCC := $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
CUDA_HOME := $(if $(NVCC),$(patsubst %/bin/nvcc,%,$(realpath $(NVCC))),$(wildcard /usr/local/cuda))
NVCCFLAGS = -std=c++17 -O3 -I. -diag-suppress 177 \
            -Xcompiler -Wall,-Wno-unknown-pragmas,-ffp-contract=off,-fno-math-errno,-fopenmp
CUDA_LIBS = -lcublasLt -ldl -Xlinker -rpath -Xlinker $(CUDA_HOME)/lib64

# NCCL, for more than one GPU: its header and its library.
NCCL_H   := $(firstword $(wildcard $(if $(CUDA_HOME),$(CUDA_HOME)/include/nccl.h) /usr/include/nccl.h))
NCCL_LIB := $(firstword $(wildcard $(if $(CUDA_HOME),$(CUDA_HOME)/lib64/libnccl.so) \
                                   /usr/lib/*/libnccl.so /usr/lib64/libnccl.so))
NCCL     := $(if $(NCCL_LIB),$(NCCL_H))
ifneq ($(NCCL),)
NVCCFLAGS += -DLLMC_NCCL -I$(dir $(NCCL))
CUDA_LIBS += -L$(dir $(NCCL_LIB)) -Xlinker --as-needed -lnccl
endif
ifneq ($(MPI_LIBS),)
NVCCFLAGS += -DLLMC_MPI $(filter -I% -D%,$(MPI_CFLAGS))
CUDA_LIBS += -Xlinker --as-needed $(patsubst -Wl$(comma)%,-Xlinker %,$(filter -L% -l% -Wl$(comma)%,$(MPI_LIBS)))
endif

# The run's log names the commit that the program was built from. The stamp changes only when the
# commit does, so nothing is rebuilt without need.
COMMIT := $(or $(shell GIT_OPTIONAL_LOCKS=0 git describe --always --dirty 2>/dev/null),unknown)
STAMP = build/commit-$(COMMIT)

# So does this one with the GPU that CUDA programs are compiled for: a folder may be shared by
# machines with other GPUs.
ARCH_STAMP = build/arch-$(ARCH)

C_PROGRAMS = train_gpt2_fp32 test_gpt2 dev/nvfp4_quantize
C_TESTS    = test_gpt2 $(patsubst dev/test/%.c,build/test/%,$(wildcard dev/test/test_*.c)) \
             $(patsubst dev/test/%.cpp,build/test/%,$(wildcard dev/test/*.cpp))
CUDA_TESTS = $(patsubst dev/test/%.cu,build/test/cuda/%,$(wildcard dev/test/*.cu))

# CUDA tests that also run on the CPU, without nvcc or a GPU: dev/test/cuda_on_cpu tells how.
CPU_TESTS  = $(filter $(wildcard dev/test/*.cu),$(patsubst %,dev/test/%.cu,\
                 test_quantize test_quantize_any test_e2m1_instruction test_gemm test_gemm_fp4 \
                 test_gemm_fp8 test_layers test_attention test_numbers_cuda test_self_test \
                 test_model test_recipes_cuda test_guards_cuda test_ranks_model))
CUDA_TESTS_ON_CPU = $(CPU_TESTS:dev/test/%.cu=build/test/cpu/%)
BENCHES    = $(patsubst dev/bench/%.c,build/bench/%,$(wildcard dev/bench/*.c)) \
             $(if $(WHY_NO_CUDA),,$(patsubst dev/bench/%.cu,build/bench/cuda/%,$(wildcard dev/bench/*.cu)))
CUDA_CODE  = $(wildcard *.cu dev/*.cu dev/test/*.cu dev/bench/*.cu)
HEADERS    = $(wildcard llmc/*.h dev/test/*.h dev/sensitivity_report/*.h)
CUDA_HEADERS = $(wildcard llmc/*.cuh dev/test/*.cuh)

.PHONY: all run test bench headers cuda-all fat lines clean
all: $(C_PROGRAMS) $(if $(NVCC),train_gpt2_nvfp4)

# ---------------------------------------------------------------------------------------------
# programs: each is one translation unit, compiled and linked in one step

train_gpt2_fp32 dev/sensitivity_cpu: %: %.c Makefile $(STAMP) | need-openblas
	$(CC) $(CFLAGS) $(DEPENDENCIES) -DGIT_COMMIT='"$(COMMIT)"' -o $@ $< $(LIBS)

train_gpt2_nvfp4 dev/sensitivity_cuda: %: %.cu Makefile $(STAMP) $(ARCH_STAMP) | need-nvcc
	$(NVCC) $(NVCCFLAGS) $(call gencode,$(ARCH)) $(DEPENDENCIES) -DGIT_COMMIT='"$(COMMIT)"' \
	    -o $@ $< $(CUDA_LIBS)

# With the gradients of weights summed in so many parts, and those of biases in 16 times as many:
# other orders of sums over tokens, as ranks have them (dev/gpu_ranks.sh).
build/parts%/train_gpt2_nvfp4: train_gpt2_nvfp4.cu Makefile $(STAMP) $(ARCH_STAMP) | need-nvcc
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) $(call gencode,$(ARCH)) $(DEPENDENCIES) -DGIT_COMMIT='"$(COMMIT)"' \
	    -DGEMM_WGRAD_PARTS=$* -DBIAS_BACKWARD_BLOCKS=$$((16 * $*)) -o $@ $< $(CUDA_LIBS)

test_gpt2 dev/nvfp4_quantize: %: %.c Makefile | build need-openblas
	$(CC) $(CFLAGS) $(DEPENDENCIES) -o $@ $< $(LIBS)

# They include the trainer and use a part of it.
test_gpt2 dev/sensitivity_cpu build/test/test_ranks_equal build/test/test_recipes \
    build/test/test_guards: CFLAGS += -Wno-unused-function

build/test/%: dev/test/%.c Makefile | build
	$(CC) $(CFLAGS) $(DEPENDENCIES) -o $@ $< $(LIBS)

# C++ because NVIDIA's headers are: a test compares our number formats with theirs, if they are
# here.
build/test/%: dev/test/%.cpp Makefile | build
	g++ -std=c++17 -O3 -march=native -ffp-contract=off -fopenmp -Wall -Wextra -I. \
	    $(if $(CUDA_HOME),-isystem $(CUDA_HOME)/include) $(DEPENDENCIES) -o $@ $< -ldl

build/bench/%: dev/bench/%.c Makefile | build
	$(CC) $(CFLAGS) $(DEPENDENCIES) -o $@ $< $(LIBS)

build/test/cuda/%: dev/test/%.cu Makefile $(ARCH_STAMP) | build need-nvcc
	$(NVCC) $(NVCCFLAGS) $(call gencode,$(ARCH)) $(DEPENDENCIES) -o $@ $< $(CUDA_LIBS) -lcurand

# On the CPU: C++ made of our CUDA code, NVIDIA's headers for the types, and a model of cuBLASLt.
# The sanitizers see what a kernel reads or writes beside its tensors. To step through a kernel:
#     make -B build/test/cpu/test_quantize CPU_LEVEL=-O0 CPU_SANITIZE=
CPU_LEVEL = -O2
CPU_SANITIZE = -fsanitize=address,undefined -fno-sanitize-recover=undefined
CPU_FLAGS = -std=c++17 $(CPU_LEVEL) -g -march=native -ffp-contract=off -fno-math-errno -fopenmp \
            -Wall -Wno-unknown-pragmas -Wno-unused-function -Wno-sign-compare $(CPU_SANITIZE) \
            -Ibuild/cpu -Idev/test -Illmc -I. -isystem $(CUDA_HOME)/include \
            -include dev/test/cuda_on_cpu/cuda_on_cpu.h
CPU_COPIES = $(CUDA_HEADERS:%=build/cpu/%) build/cpu/train_gpt2_nvfp4.cu

# With MPI and NCCL's header, also a model of NCCL: several ranks, each a process.
CPU_NCCL   = $(if $(MPI_LIBS),$(NCCL))
CPU_MODELS = build/cpu/cublaslt_model.o $(if $(CPU_NCCL),build/cpu/nccl_model.o)
CPU_RANKS  = $(if $(CPU_NCCL),-DLLMC_MPI -DLLMC_NCCL $(MPI_CFLAGS))
CPU_LIBS   = $(CPU_MODELS) -ldl $(if $(CPU_NCCL),$(MPI_LIBS))

build/test/cpu/%: build/cpu/dev/test/%.cu $(CPU_COPIES) $(CPU_MODELS) Makefile
	@mkdir -p $(@D)
	g++ $(CPU_FLAGS) $(CPU_RANKS) $(DEPENDENCIES) -o $@ -x c++ $< -x none $(CPU_LIBS)

# The trainer itself, and what measures its checkpoints, without the sanitizers.
CPU_PROGRAMS = build/cpu/train_gpt2_nvfp4 build/cpu/dev/sensitivity_cuda
$(CPU_PROGRAMS): %: %.cu $(CPU_COPIES) $(CPU_MODELS) Makefile
	g++ $(filter-out -fsanitize% -fno-sanitize%,$(CPU_FLAGS)) $(CPU_RANKS) $(DEPENDENCIES) \
	    -o $@ -x c++ $< -x none $(CPU_LIBS)

build/cpu/%: % dev/test/cuda_on_cpu/translate.sh
	@mkdir -p $(@D)
	dev/test/cuda_on_cpu/translate.sh $< > $@ || { rm -f $@; false; }

build/cpu/%_model.o: dev/test/%_model.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -isystem $(CUDA_HOME)/include $(DEPENDENCIES) -c -o $@ $<

# Their sources are files of their own: keep the copies, which compiler and debugger point to.
.SECONDARY: $(CPU_COPIES) $(CPU_TESTS:%=build/cpu/%) $(CPU_PROGRAMS:%=%.cu)

build/bench/cuda/%: dev/bench/%.cu Makefile $(ARCH_STAMP) | build need-nvcc
	$(NVCC) $(NVCCFLAGS) $(call gencode,$(ARCH)) $(DEPENDENCIES) -o $@ $< $(CUDA_LIBS)

build:
	mkdir -p build/test/cuda build/bench/cuda build/all build/headers

$(STAMP): | build
	rm -f build/commit-*
	touch $@
$(ARCH_STAMP): | build
	rm -f build/arch-*
	touch $@

.PHONY: need-nvcc need-openblas
need-openblas:
	@echo '#include <cblas.h>' | $(CC) -E - > /dev/null 2>&1 || \
	    { echo "error: OpenBLAS is not installed; run dev/setup.sh" >&2; exit 1; }
need-nvcc:
	$(if $(NVCC),@:,$(error nvcc not found; CUDA code needs the CUDA toolkit (12.8 or newer): \
	    https://developer.nvidia.com/cuda-downloads))
	$(if $(filter compute_$(ARCH:a=),$(NVCC_ARCHS)),@:,$(error this nvcc cannot compile for the \
	    compute capability $(ARCH:a=) (without the dot) of this machine's GPU; 103 and 121 need CUDA \
	    12.9 or newer: https://developer.nvidia.com/cuda-downloads))

-include $(wildcard build/*.d)

# ---------------------------------------------------------------------------------------------
# what one does with them

run:
	dev/run.sh

# The CUDA tests are built only where they can run.
WHY_NO_CUDA := $(if $(GPU),$(if $(NVCC),,no nvcc on this machine),no CUDA GPU (8.0 or newer) on this machine)
CUDA_HERE = $(if $(WHY_NO_CUDA),,train_gpt2_nvfp4 $(CUDA_TESTS))
CUDA_TYPES := $(wildcard $(CUDA_HOME)/include/cublasLt.h)
test: $(C_PROGRAMS) dev/sensitivity_cpu $(C_TESTS) $(CUDA_HERE) \
      $(if $(CUDA_TYPES),$(CUDA_TESTS_ON_CPU) build/cpu/dev/sensitivity_cuda)
	dev/test/run.sh $(C_TESTS:test_gpt2=./test_gpt2) $(wildcard dev/test/test_*.sh dev/test/test_*.py) \
	    $(if $(CUDA_TYPES),$(CUDA_TESTS_ON_CPU)) \
	    $(if $(WHY_NO_CUDA),,$(CUDA_TESTS)) \
	    $(if $(CUDA_TYPES),,--skip "no CUDA headers on this machine" $(CUDA_TESTS_ON_CPU)) \
	    $(if $(WHY_NO_CUDA),--skip "$(WHY_NO_CUDA)" $(CUDA_TESTS))

# The speed of the C program against PyTorch on the CPU; dev/bench has the other comparisons.
bench: train_gpt2_fp32 $(BENCHES)
	dev/bench/bench_cpu.sh

# Each header compiles alone: .h as C11 and as C++17, .cuh with nvcc.
headers: $(HEADERS:%=build/headers/%.ok) $(if $(NVCC),$(CUDA_HEADERS:%=build/headers/%.ok))
	@echo "headers: $(words $^) compile alone$(if $(NVCC),, (no nvcc: .cuh not tried))"

build/headers/%.h.ok: %.h $(HEADERS) | build
	$(CC) $(CFLAGS) -fsyntax-only -x c $<
	g++ -std=c++17 -Wall -Wextra -fopenmp -I. $(if $(MPI_LIBS),-DLLMC_MPI $(MPI_CFLAGS)) -fsyntax-only -x c++ $<
	@mkdir -p $(@D) && touch $@

build/headers/%.cuh.ok: %.cuh $(HEADERS) $(CUDA_HEADERS) | build
	$(NVCC) $(NVCCFLAGS) $(call gencode,$(ARCH)) -x cu -c -o /dev/null $<
	@mkdir -p $(@D) && touch $@

# One object file for all architectures together; it is never linked.
cuda-all: $(CUDA_CODE:%.cu=build/all/%.o)
	@echo "cuda-all: $(words $^) files compile for $(ARCHS_ALL:%=sm_%)"

build/all/%.o: %.cu Makefile | build need-nvcc
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) $(call gencode,$(ARCHS_ALL)) $(DEPENDENCIES) -c -o $@ $<

# One binary for every GPU, in half a minute on two cores. dev/test/test_fat.sh looks into it.
fat: build/fat/train_gpt2_nvfp4

build/fat/train_gpt2_nvfp4: train_gpt2_nvfp4.cu Makefile $(STAMP) | need-nvcc
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) --threads 0 $(FAT_GENCODE) $(DEPENDENCIES) -DGIT_COMMIT='"$(COMMIT)"' \
	    -o $@ $< $(CUDA_LIBS)

lines:
	dev/lines.sh

clean:
	rm -rf build
	rm -f $(C_PROGRAMS) train_gpt2_nvfp4 dev/sensitivity_cpu dev/sensitivity_cuda

print-%:
	@echo '$($*)'
