"""The measured constants of the CPU, on Zen 4 cores with OpenBLAS, for float32.

None of them changes what is computed, but for rounding. The speeds by which algorithms are compared
on every backend stand in `reference.algorithm` and `reference.fourier`, the sizes of register
blocks, which follow from the processor, in `compiled.llvm`.
"""

# ---- Threads ----

THREAD_SECONDS = 2e-4  # of work; less stays with the caller, handing it over takes a sixth of that
SHARED_TASKS = 4  # tasks of work that several threads share, at least
PARTIAL_SUMS = 4  # of a weight gradient, added up at the end: its bits do not depend on threads

# Guesses at the time of one core, to see what is worth a thread.
SECONDS_PER_MULTIPLY_ADD = 1e-11  # of large matrix products
SECONDS_PER_DENSE_MULTIPLY_ADD = 2e-11  # of those of a dense layer
SECONDS_PER_COPIED_BYTE = 1e-10
SECONDS_PER_PASS = 2e-10  # over one element of a large array
SECONDS_PER_PACKED_WEIGHT = 1e-9  # to lay it out for the compiled kernels

# ---- Memory ----

KEPT_BYTES = 1 << 30  # of unused blocks; more goes back to the system
RECYCLED_BYTES = 256 << 10  # of an array, at least; below, malloc reuses memory by itself
BLOCK_BYTES = 64 << 10  # of which blocks are multiples
SEGMENT_BYTES = 32 << 20  # that are asked from the system at a time, at least …
FIRST_SEGMENT_BYTES = 3 << 20  # … but at first: from 4 MiB on NumPy asks for huge pages

# ---- Element by element ----

CHUNK_ELEMENTS = 1 << 19  # that a task works on; fewer cost calls, more the cache
UPDATE_ELEMENTS = 1 << 16  # of a parameter: with gradient, state and temporaries still in cache
COMPILED_ELEMENTS = 1 << 16  # that a compiled loop works on at a time
SUM_ELEMENTS = 1024  # of a sum in float32; the sums of these are added in float64
COMPILED_SUM_ELEMENTS = 4096  # the same in compiled loops, which keep several sums at once
ZEROS = 4096  # in a row that a ReLU compares with: in cache they beat a single zero
DENSE_ROWS = 64  # of a large dense product, of one task

# ---- Columns ----

SMALL_COLUMN_ELEMENTS = 1 << 16  # of a whole convolution: not worth cutting up
COLUMN_TILE_BYTES = 4 << 20  # of columns, still in cache when they are multiplied
COLUMN_LENGTHS = (256, 8192)  # shorter matrices starve the product, longer ones gain nothing
PRODUCT_ELEMENTS = 1 << 18  # that are kept until they are added up or transformed

# ---- Winograd's minimal filtering, F(m, r) ----

INPUT_SIZES = (4, 6, 8)  # m + r − 1; more lose too many digits
WINOGRAD_LENGTHS = (128, 1024)  # of matrices, as `COLUMN_LENGTHS`
TRANSFORM_COST = 20  # multiply-adds in the time that one transformed value takes
SMALL_BATCH = 64  # at this batch size a transformed value takes twice that
COPY_COST = 8  # multiply-adds in the time that one value of a plain column takes
WINOGRAD_GAIN = 0.9  # of the time of plain columns, at most
WINOGRAD_SLOWNESS = 6  # its time, in that of its products alone, were they as fast as large ones

# ---- Compiled convolution ----

DIRECT_NS_PER_MULTIPLY_ADD = 0.008  # with many outputs in a group; with one, three times that
COMPILED_TASKS = 16  # of a convolution, at most …
TASK_MULTIPLY_ADDS = 2_000_000  # … and what each of them is worth
RUN_ELEMENTS = 4096  # of a row of the output, that are computed at a time, at least
PRODUCT_LENGTH = 1024  # elements that a weight gradient sums up before it goes to memory

COMPILED_M = 4  # outputs of the compiled F(m, r)
COMPILED_KERNELS = (3, 5)  # r for which there are transforms
COMPILED_CHANNELS = 24  # in and out, at least; fewer leave too little to do between transforms
COMPILED_SAMPLES = 16  # of a tile
COMPILED_TILE_BYTES = 2 << 20  # of transformed values in a tile …
COMPILED_TILE_ROWS = 4  # … unless so many rows take more
COMPILED_WASTE = 1.3  # of columns that are computed, to those that are there, at most
LARGEST_SUM = 1e30  # of magnitudes; above, an overflow is near
