/* Prediction by a forest of regression trees, in the order of additions that XGBoost has, and so with its bits.
 *
 * Trees are walked level by level by several rows at once: the loads of one row do not wait for those of another. A leaf
 * leads to itself, so that all rows of a tree take the same number of steps. `forest.py` makes the nodes, and says when
 * this may be used at all.
 *
 * The upper TOP_LEVELS levels of a tree are compared by vectors of bytes. For that, a row becomes bytes: the rank of each
 * value among its feature's thresholds, 0 if it is missing. A value is at a threshold or above it if and only if its rank is
 * greater than the threshold's, so this is exact. Processors with vectors of 64 bytes (AVX-512 VBMI) compare a row with 63
 * nodes at once; those with AVX2 or NEON, LANES rows with each of these nodes. Deeper levels are walked as above. A few rows
 * are quicker without: what is loaded for a tree serves up to BLOCK rows.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#if defined(__GNUC__) && defined(__x86_64__)
#define HAS_VECTORS
#define LANES 32
#define FOR_LANES __attribute__((target("avx2")))
#include <immintrin.h>
#elif defined(__GNUC__) && defined(__aarch64__)
#define LANES 16
#define FOR_LANES
#endif

typedef struct {
    float threshold;   /* of a leaf: NaN, so that no value leads to its right */
    uint32_t feature;  /* the highest bit: a missing value goes to the right */
    int32_t child;     /* the left one; the right one follows it */
    float value;       /* of a leaf */
} Node;

#define MISSING_RIGHT 0x80000000u
#define BLOCK 64 /* rows that all trees are walked for before the next; they stay in the first cache */
#define MANY 16
#define FEW 4

#if defined(_MSC_VER)
#define INLINE static __forceinline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

/* From the root, or each row from the node that `starts` has for it. */
INLINE void
walk(const Node *nodes, int32_t levels, const float *rows, Py_ssize_t columns, const int lanes, const uint32_t *starts,
     float *sums, const int missing)
{
    uint32_t at[MANY] = {0};
    if (starts)
        for (int lane = 0; lane < lanes; lane++)
            at[lane] = starts[lane];
    for (int32_t level = 0; level < levels; level++)
        for (int lane = 0; lane < lanes; lane++) {
            const Node *node = nodes + at[lane];
            float x = rows[lane * columns + (Py_ssize_t)(node->feature & ~MISSING_RIGHT)];
            uint32_t right = x >= node->threshold;
            if (missing)
                right |= (uint32_t)(x != x) & node->feature >> 31;
            at[lane] = (uint32_t)node->child + right;
        }
    for (int lane = 0; lane < lanes; lane++)
        sums[lane] += nodes[at[lane]].value;
}

INLINE void
walk_block(const Node *nodes, int32_t levels, const float *rows, Py_ssize_t columns, Py_ssize_t size,
           const uint32_t *starts, float *sums, const int missing)
{
    Py_ssize_t row = 0;
    for (; row + MANY <= size; row += MANY)
        walk(nodes, levels, rows + row * columns, columns, MANY, starts ? starts + row : NULL, sums + row, missing);
    for (; row + FEW <= size; row += FEW)
        walk(nodes, levels, rows + row * columns, columns, FEW, starts ? starts + row : NULL, sums + row, missing);
    for (; row < size; row++)
        walk(nodes, levels, rows + row * columns, columns, 1, starts ? starts + row : NULL, sums + row, missing);
}

static void
sum_trees(const Node *nodes, const int32_t *roots, const int32_t *depths, Py_ssize_t trees, const float *rows,
          Py_ssize_t columns, Py_ssize_t count, float *sums)
{
    for (Py_ssize_t begin = 0; begin < count; begin += BLOCK) {
        Py_ssize_t size = count - begin < BLOCK ? count - begin : BLOCK;
        const float *block = rows + begin * columns;
        int missing = 0;
        for (Py_ssize_t each = 0; each < size * columns; each++)
            missing |= block[each] != block[each];
        for (Py_ssize_t tree = 0; tree < trees; tree++)
            if (missing)
                walk_block(nodes + roots[tree], depths[tree], block, columns, size, NULL, sums + begin, 1);
            else
                walk_block(nodes + roots[tree], depths[tree], block, columns, size, NULL, sums + begin, 0);
    }
}

#define TOP_LEVELS 6
#define MAX_RANKED 256

/* The upper levels of a tree, from which a row takes one of 64 exits. Byte s is of the s-th of the eight subtrees that
 * begin below the third level: its bits are the seven nodes of that subtree's three levels, level by level from the lowest
 * bit, and as the highest bit the s-th node of the three upper levels. */
typedef struct {
    uint8_t column[64];    /* of the ranks */
    uint8_t threshold[64]; /* ranks above it go to the right; 255: none */
    uint64_t missing_right;
    int32_t root, depth;
    union {
        float value[64];   /* of a tree that is not deeper */
        uint32_t node[64]; /* of a deeper one: where to walk on */
    } exit;
} Top;

/* One column of the ranks: up to 254 thresholds of a feature, ascending, padded with NaN. A feature may have several. */
typedef struct {
    float last[16]; /* of each part */
    float part[16][16];
    int32_t feature;
} Cuts;

#ifdef HAS_VECTORS
#define AVX512 __attribute__((target("avx2,avx512f,avx512bw,avx512vbmi,popcnt")))

/* Where three levels lead to, by the bits of their seven nodes. */
static uint8_t exits[128];

static void
fill_exits(void)
{
    for (unsigned rights = 0; rights < 128; rights++) {
        unsigned node = 0;
        for (int level = 0; level < 3; level++)
            node = 2 * node + 1 + (rights >> node & 1);
        exits[rights] = (uint8_t)(node - 7);
    }
}

/* `width` is the bytes of a row's ranks. Whether a value is missing. */
AVX512 static int
rank_rows(const Cuts *cuts, Py_ssize_t ranked, const float *rows, Py_ssize_t columns, Py_ssize_t size, int width,
          uint8_t *ranks)
{
    int missing = 0;
    for (Py_ssize_t column = 0; column < ranked; column++) {
        const Cuts *own = cuts + column;
        __m512 last = _mm512_loadu_ps(own->last);
        for (Py_ssize_t row = 0; row < size; row++) {
            float x = rows[row * columns + own->feature];
            __m512 every = _mm512_set1_ps(x);
            int part = __builtin_popcount(_mm512_cmp_ps_mask(every, last, _CMP_GE_OQ));
            int rest = __builtin_popcount(_mm512_cmp_ps_mask(every, _mm512_loadu_ps(own->part[part]), _CMP_GE_OQ));
            missing |= x != x;
            ranks[row * width + column] = (uint8_t)((1 + 16 * part + rest) & -(x == x));
        }
    }
    return missing;
}

/* Whether each row goes to the right at each node, as the bits of `Top`. */
AVX512 static void
compare(const Top *top, const uint8_t *ranks, Py_ssize_t size, int width, int missing, uint64_t *rights)
{
    __m512i column = _mm512_loadu_si512(top->column), threshold = _mm512_loadu_si512(top->threshold);
    for (Py_ssize_t row = 0; row < size; row++, ranks += width) {
        __m512i own = _mm512_loadu_si512(ranks), rank;
        if (width == 64)
            rank = _mm512_permutexvar_epi8(column, own);
        else
            rank = _mm512_permutex2var_epi8(own, column, _mm512_loadu_si512(ranks + 64));
        if (width == 256)
            rank = _mm512_mask_mov_epi8(rank, _mm512_movepi8_mask(column),
                                        _mm512_permutex2var_epi8(_mm512_loadu_si512(ranks + 128), column,
                                                                 _mm512_loadu_si512(ranks + 192)));
        rights[row] = _mm512_cmpgt_epu8_mask(rank, threshold);
        if (missing)
            rights[row] |= _mm512_testn_epi8_mask(rank, rank) & top->missing_right;
    }
}

/* The exit of each of BLOCK rows: its three upper levels say which byte has its three lower ones. */
AVX512 static void
find_exits(const uint64_t *rights, Py_ssize_t size, uint8_t *found)
{
    uint64_t uppers[BLOCK / 8] = {0};
    for (Py_ssize_t eight = 0; 8 * eight < size; eight++)
        uppers[eight] = _mm512_movepi8_mask(_mm512_loadu_si512(rights + 8 * eight));
    __m512i low = _mm512_loadu_si512(exits), high = _mm512_loadu_si512(exits + 64), lower = _mm512_setzero_si512();
    __m512i part = _mm512_slli_epi16(_mm512_permutex2var_epi8(low, _mm512_loadu_si512(uppers), high), 3);
    __m512i byte = _mm512_or_si512(_mm512_srli_epi16(part, 3), _mm512_set1_epi64(0x3830282018100800));
    for (Py_ssize_t eight = 0; 8 * eight < size; eight++)
        lower = _mm512_mask_permutexvar_epi8(lower, (__mmask64)0xff << 8 * eight, byte,
                                             _mm512_loadu_si512(rights + 8 * eight));
    _mm512_storeu_si512(found, _mm512_or_si512(part, _mm512_permutex2var_epi8(low, lower, high)));
}

AVX512 static void
add_values(const float *value, const uint8_t *found, Py_ssize_t size, float *sums)
{
    __m512 first = _mm512_loadu_ps(value), second = _mm512_loadu_ps(value + 16), third = _mm512_loadu_ps(value + 32),
           fourth = _mm512_loadu_ps(value + 48);
    for (Py_ssize_t row = 0; row < size; row += 16) {
        __mmask16 own = (__mmask16)(size - row < 16 ? (1 << (size - row)) - 1 : 0xffff);
        __m512i at = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(found + row)));
        __m512 lower = _mm512_permutex2var_ps(first, at, second), upper = _mm512_permutex2var_ps(third, at, fourth);
        __m512 each = _mm512_mask_mov_ps(lower, _mm512_test_epi32_mask(at, _mm512_set1_epi32(32)), upper);
        _mm512_mask_storeu_ps(sums + row, own, _mm512_add_ps(_mm512_maskz_loadu_ps(own, sums + row), each));
    }
}

#endif

#ifdef LANES
#define SEARCHES 8 /* at once: none waits for the loads of another */
typedef int8_t Lanes __attribute__((vector_size(LANES)));

/* A column after the other, for each of BLOCK rows; less 128, as vectors compare bytes with signs. */
FOR_LANES INLINE int
rank_columns(const Cuts *cuts, Py_ssize_t ranked, const float *rows, Py_ssize_t columns, Py_ssize_t size, int8_t *ranks)
{
    int missing = 0;
    for (Py_ssize_t column = 0; column < ranked; column++) {
        const float *thresholds = cuts[column].part[0];
        for (Py_ssize_t row = 0; row < size; row += SEARCHES) {
            int32_t below[SEARCHES] = {0}, here = size - row < SEARCHES ? (int32_t)(size - row) : SEARCHES;
            float x[SEARCHES];
            for (int each = 0; each < SEARCHES; each++)
                x[each] = rows[(row + (each < here ? each : 0)) * columns + cuts[column].feature];
            for (int32_t step = 128; step; step >>= 1)
                for (int each = 0; each < SEARCHES; each++)
                    below[each] += step & -(x[each] >= thresholds[below[each] + step - 1]);
            for (int each = 0; each < SEARCHES; each++) {
                missing |= x[each] != x[each];
                ranks[column * BLOCK + row + each] = (int8_t)((1 + below[each]) * (x[each] == x[each]) - 128);
            }
        }
    }
    return missing;
}

/* Which rows go to the right at a node: all bits or none. */
FOR_LANES INLINE Lanes
rights_at(const Top *top, int node, const int8_t *ranks, const int missing)
{
    Lanes rank = *(const Lanes *)(ranks + top->column[node] * BLOCK);
    Lanes right = rank > (int8_t)(top->threshold[node] - 128);
    if (missing)
        right |= (rank == (int8_t)-128) & (int8_t) - (int)(top->missing_right >> node & 1);
    return right;
}

FOR_LANES INLINE Lanes
choose(Lanes which, Lanes right, Lanes left)
{
    return left ^ ((left ^ right) & which);
}

/* The three decisions on the way through three levels, whose nodes are `first` and each `step` further. */
FOR_LANES INLINE void
three_levels(const Top *top, int first, int step, const int8_t *ranks, const int missing, Lanes *found)
{
#define RIGHTS(node) rights_at(top, first + step * (node), ranks, missing)
    found[0] = RIGHTS(0);
    found[1] = choose(found[0], RIGHTS(2), RIGHTS(1));
    found[2] = choose(found[0], choose(found[1], RIGHTS(6), RIGHTS(5)), choose(found[1], RIGHTS(4), RIGHTS(3)));
#undef RIGHTS
}

FOR_LANES INLINE Lanes
bits_of(const Lanes *found)
{
    return (found[0] & 4) | (found[1] & 2) | (found[2] & 1);
}

/* The exit of each of BLOCK rows. */
FOR_LANES INLINE void
find_exits_by_lanes(const Top *top, const int8_t *ranks, Py_ssize_t size, const int missing, uint8_t *exits_of)
{
    for (Py_ssize_t row = 0; row < size; row += LANES) {
        Lanes upper[3], lower[3], exit[8];
        three_levels(top, 7, 8, ranks + row, missing, upper);
        for (int part = 0; part < 8; part++) {
            three_levels(top, 8 * part, 1, ranks + row, missing, lower);
            exit[part] = bits_of(lower);
        }
        for (int half = 0; half < 4; half++)
            exit[half] = choose(upper[2], exit[2 * half + 1], exit[2 * half]);
        Lanes chosen = choose(upper[0], choose(upper[1], exit[3], exit[2]), choose(upper[1], exit[1], exit[0]));
        *(Lanes *)(exits_of + row) = chosen | (Lanes)(bits_of(upper) << 3);
    }
}

FOR_LANES INLINE void
sum_tops(const Node *nodes, const Top *tops, const Cuts *cuts, Py_ssize_t trees, Py_ssize_t ranked, const float *rows,
         Py_ssize_t columns, Py_ssize_t count, float *sums, const int by_lanes)
{
    _Alignas(64) uint8_t ranks[BLOCK * MAX_RANKED], found[BLOCK];
    uint32_t at[BLOCK];
    int missing = 0;
#ifdef HAS_VECTORS
    uint64_t rights[BLOCK] = {0};
    int width = ranked <= 64 ? 64 : ranked <= 128 ? 128 : 256;
#endif
    for (Py_ssize_t begin = 0; begin < count; begin += BLOCK) {
        Py_ssize_t size = count - begin < BLOCK ? count - begin : BLOCK;
        const float *block = rows + begin * columns;
        if (by_lanes)
            missing = rank_columns(cuts, ranked, block, columns, size, (int8_t *)ranks);
#ifdef HAS_VECTORS
        else
            missing = rank_rows(cuts, ranked, block, columns, size, width, ranks);
#endif
        for (const Top *top = tops; top < tops + trees; top++) {
            const Node *tree = nodes + top->root;
            if (by_lanes && missing)
                find_exits_by_lanes(top, (const int8_t *)ranks, size, 1, found);
            else if (by_lanes)
                find_exits_by_lanes(top, (const int8_t *)ranks, size, 0, found);
#ifdef HAS_VECTORS
            else {
                compare(top, ranks, size, width, missing, rights);
                find_exits(rights, size, found);
                if (top->depth <= TOP_LEVELS) {
                    add_values(top->exit.value, found, size, sums + begin);
                    continue;
                }
            }
#endif
            if (top->depth <= TOP_LEVELS) {
                for (Py_ssize_t row = 0; row < size; row++)
                    sums[begin + row] += top->exit.value[found[row]];
                continue;
            }
            for (Py_ssize_t row = 0; row < size; row++) {
                at[row] = top->exit.node[found[row]];
                __builtin_prefetch(tree + at[row]); /* of many deep trees, they are not in the cache */
            }
            if (missing)
                walk_block(tree, top->depth - TOP_LEVELS, block, columns, size, at, sums + begin, 1);
            else
                walk_block(tree, top->depth - TOP_LEVELS, block, columns, size, at, sums + begin, 0);
        }
    }
}

#define SUM_TOPS(name, by_lanes)                                                                                       \
    static void name(const Node *nodes, const Top *tops, const Cuts *cuts, Py_ssize_t trees, Py_ssize_t ranked,        \
                     const float *rows, Py_ssize_t columns, Py_ssize_t count, float *sums)                             \
    {                                                                                                                  \
        sum_tops(nodes, tops, cuts, trees, ranked, rows, columns, count, sums, by_lanes);                              \
    }

FOR_LANES SUM_TOPS(sum_tops_by_lanes, 1)
#ifdef HAS_VECTORS
AVX512 SUM_TOPS(sum_tops_by_vectors, 0)
#endif
#endif

/* As `common::Sigmoid` of XGBoost. */
static float
sigmoid(float x)
{
    float power = -x < 88.7f ? -x : 88.7f;
    float denominator = expf(power) + 1.0f + 1e-16f;
    return 1.0f / denominator;
}

/* As `LogisticRegression::ProbToMargin` of XGBoost. Here, because the C library's logarithm may have other last bits than
 * NumPy's. */
static float
margin(float probability)
{
    return -logf(1.0f / probability - 1.0f);
}

typedef void (*SumTops)(const Node *, const Top *, const Cuts *, Py_ssize_t, Py_ssize_t, const float *, Py_ssize_t, Py_ssize_t,
                        float *);

/* `trees` and `rest` are tops and cuts where there is `sum_tops_so`, else roots and depths. */
static PyObject *
fill(PyObject *args, SumTops sum_tops_so)
{
    Py_buffer nodes, trees, rest, matrix, scores, margins;
    Py_ssize_t columns;
    float base;
    int logistic;
    if (!PyArg_ParseTuple(args, "y*y*y*fpy*nw*z*", &nodes, &trees, &rest, &base, &logistic, &matrix, &columns,
                          &scores, &margins))
        return NULL;
    Py_ssize_t count = scores.len / (Py_ssize_t)sizeof(float);
    int fits = columns > 0 && columns <= PY_SSIZE_T_MAX / (Py_ssize_t)sizeof(float)
               && (sum_tops_so ? rest.len <= MAX_RANKED * (Py_ssize_t)sizeof(Cuts) : rest.len == trees.len)
               && matrix.len / (columns * (Py_ssize_t)sizeof(float)) >= count
               && (!margins.buf || margins.len == scores.len);
    if (fits) {
        float *sums = scores.buf;
        if (logistic)
            base = margin(base);
        for (Py_ssize_t row = 0; row < count; row++)
            sums[row] = margins.buf ? ((const float *)margins.buf)[row] : base;
        if (sum_tops_so)
            sum_tops_so(nodes.buf, trees.buf, rest.buf, trees.len / (Py_ssize_t)sizeof(Top),
                        rest.len / (Py_ssize_t)sizeof(Cuts), matrix.buf, columns, count, sums);
        else
            sum_trees(nodes.buf, trees.buf, rest.buf, trees.len / (Py_ssize_t)sizeof(int32_t), matrix.buf, columns, count,
                      sums);
        if (logistic)
            for (Py_ssize_t row = 0; row < count; row++)
                sums[row] = sigmoid(sums[row]);
    } else {
        PyErr_SetString(PyExc_ValueError, "fewer rows than scores, fewer depths than trees, or not a margin a row");
    }
    PyBuffer_Release(&nodes);
    PyBuffer_Release(&trees);
    PyBuffer_Release(&rest);
    PyBuffer_Release(&matrix);
    PyBuffer_Release(&scores);
    if (margins.buf)
        PyBuffer_Release(&margins);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
predict(PyObject *Py_UNUSED(module), PyObject *args)
{
    return fill(args, NULL);
}

#ifdef LANES
static PyObject *
predict_by_lanes(PyObject *Py_UNUSED(module), PyObject *args)
{
    return fill(args, sum_tops_by_lanes);
}
#endif

#ifdef HAS_VECTORS
static PyObject *
predict_by_vectors(PyObject *Py_UNUSED(module), PyObject *args)
{
    return fill(args, sum_tops_by_vectors);
}
#endif

#define BY_RANKS "As `predict`, with tops and cuts instead of roots and depths."

static PyMethodDef methods[] = {
    {"predict", predict, METH_VARARGS, "Fill an array with the scores of a matrix; see `forest.Forest`."},
    {NULL, NULL, 0, NULL}, /* what the processor has besides */
    {NULL, NULL, 0, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_forest", .m_doc = "A forest of trees, compiled.", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__forest(void)
{
#ifdef LANES
    PyMethodDef *next = methods + 1;
#ifdef HAS_VECTORS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi")) {
        fill_exits();
        *next++ = (PyMethodDef){"predict_by_vectors", predict_by_vectors, METH_VARARGS, BY_RANKS};
    }
    if (__builtin_cpu_supports("avx2"))
#endif
        *next = (PyMethodDef){"predict_by_lanes", predict_by_lanes, METH_VARARGS, BY_RANKS};
#endif
    return PyModuleDef_Init(&definition);
}
