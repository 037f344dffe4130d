/* Prediction by a forest of regression trees, in the order of additions that XGBoost has, and so with its bits.
 *
 * Trees are walked level by level by several rows at once: the loads of one row do not wait for those of another. A leaf
 * leads to itself, so that all rows of a tree take the same number of steps. `forest.py` makes the nodes, and says when
 * this may be used at all.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>

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

INLINE void
walk(const Node *nodes, int32_t depth, const float *rows, Py_ssize_t columns, const int lanes, float *sums,
     const int missing)
{
    uint32_t at[MANY] = {0};
    for (int32_t level = 0; level < depth; level++)
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
walk_block(const Node *nodes, int32_t depth, const float *rows, Py_ssize_t columns, Py_ssize_t size, float *sums,
           const int missing)
{
    Py_ssize_t row = 0;
    for (; row + MANY <= size; row += MANY)
        walk(nodes, depth, rows + row * columns, columns, MANY, sums + row, missing);
    for (; row + FEW <= size; row += FEW)
        walk(nodes, depth, rows + row * columns, columns, FEW, sums + row, missing);
    for (; row < size; row++)
        walk(nodes, depth, rows + row * columns, columns, 1, sums + row, missing);
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
                walk_block(nodes + roots[tree], depths[tree], block, columns, size, sums + begin, 1);
            else
                walk_block(nodes + roots[tree], depths[tree], block, columns, size, sums + begin, 0);
    }
}

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

static PyObject *
predict(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer nodes, roots, depths, matrix, scores, margins;
    Py_ssize_t columns;
    float base;
    int logistic;
    if (!PyArg_ParseTuple(args, "y*y*y*fpy*nw*z*", &nodes, &roots, &depths, &base, &logistic, &matrix, &columns,
                          &scores, &margins))
        return NULL;
    Py_ssize_t trees = roots.len / (Py_ssize_t)sizeof(int32_t), count = scores.len / (Py_ssize_t)sizeof(float);
    int fits = columns > 0 && columns <= PY_SSIZE_T_MAX / (Py_ssize_t)sizeof(float) && depths.len == roots.len
               && matrix.len / (columns * (Py_ssize_t)sizeof(float)) >= count
               && (!margins.buf || margins.len == scores.len);
    if (fits) {
        float *sums = scores.buf;
        if (logistic)
            base = margin(base);
        for (Py_ssize_t row = 0; row < count; row++)
            sums[row] = margins.buf ? ((const float *)margins.buf)[row] : base;
        sum_trees(nodes.buf, roots.buf, depths.buf, trees, matrix.buf, columns, count, sums);
        if (logistic)
            for (Py_ssize_t row = 0; row < count; row++)
                sums[row] = sigmoid(sums[row]);
    } else {
        PyErr_SetString(PyExc_ValueError, "fewer rows than scores, fewer depths than trees, or not a margin a row");
    }
    PyBuffer_Release(&nodes);
    PyBuffer_Release(&roots);
    PyBuffer_Release(&depths);
    PyBuffer_Release(&matrix);
    PyBuffer_Release(&scores);
    if (margins.buf)
        PyBuffer_Release(&margins);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"predict", predict, METH_VARARGS, "Fill an array with the scores of a matrix; see `forest.Forest`."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_forest", .m_doc = "A forest of trees, compiled.", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__forest(void)
{
    return PyModuleDef_Init(&definition);
}
