/* SHAP values of a forest of regression trees, by the covers of its nodes (Lundberg and others, "Consistent Individualized
 * Feature Attribution for Tree Ensembles", 2018).
 *
 * What a leaf of value v adds to a feature is v (o - z) times the integral, for t from 0 to 1, of the product of
 * o t + z (1 - t) over all other features of its path: o is 1 if the row satisfies all conditions on the feature there, else
 * 0, and z the share of the training rows that do. It is the integral of a polynomial, so a few points of Gauss and Legendre
 * are exact. As in Linear TreeSHAP (Yu and others, 2022), products are made on the way down, and leaves summed up on the way
 * up; LANES rows go together. `shapley.py` lays out what is needed. No z may be 0.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

/* As in `_forest.c`. A leaf's child is the leaf itself. */
typedef struct {
    float threshold;
    uint32_t feature; /* the highest bit: a missing value goes to the right */
    int32_t child;
    float value;
} Node;

/* What is known of a node besides. */
typedef struct {
    double z;       /* of the feature that its parent splits on, by all conditions on it down to here; of a root 1 */
    int32_t before; /* which edge of the path is the last on the feature that it splits on itself, from 1; 0: none */
    int32_t unused;
} Way;

#define LANES 4
#define MAX_DEPTH 16
#define MAX_POINTS 8
#define MISSING_RIGHT 0x80000000u

#if defined(__GLIBC__) && defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif

typedef double Lanes __attribute__((vector_size(LANES * sizeof(double)), aligned(16)));

/* A feature's part in the products of a path, down from an edge on it. */
typedef struct {
    Lanes o;
    Lanes inverse[MAX_POINTS]; /* 1 / (o t + z (1 - t)) */
    Lanes gain[MAX_POINTS];    /* the point's weight times (o - z) / (o t + z (1 - t)) */
} Edge;

typedef struct {
    const Node *nodes; /* of a tree */
    const Way *ways;
    const double *points, *weights;
    int count; /* of points */
    const float *rows[LANES];
    Lanes *adds;               /* a feature */
    Edge edges[MAX_DEPTH + 1]; /* by depth; the first stands for no edge at all */
} Walk;

/* Into `sums`: of each point, the leaves below an inner node, times their products. */
WIDE static void
visit(Walk *walk, int32_t at, int depth, const Lanes *restrict products, Lanes *restrict sums)
{
    const Node *nodes = walk->nodes, *node = nodes + at;
    const int count = walk->count;
    uint32_t feature = node->feature & ~MISSING_RIGHT;
    const int missing_right = node->feature >> 31;
    const Edge *before = walk->edges + walk->ways[at].before;
    Edge *edge = walk->edges + depth + 1;
    Lanes right, adds = {0}, own[MAX_POINTS], below[MAX_POINTS];
    for (int lane = 0; lane < LANES; lane++) {
        float x = walk->rows[lane][feature];
        right[lane] = (x >= node->threshold) | ((x != x) & missing_right); /* branches would be taken at random */
    }
    for (int side = 0; side < 2; side++) {
        int32_t child = node->child + side;
        double z = walk->ways[child].z, value = nodes[child].value;
        Lanes o = (side ? right : 1 - right) * before->o;
        if (nodes[child].child == child) {
            for (int point = 0; point < count; point++) {
                Lanes others = value * products[point] * before->inverse[point];
                Lanes all = others * (o * walk->points[point] + z * (1 - walk->points[point]));
                /* What an earlier edge on the same feature will add for this leaf, this one does instead. */
                adds += others * (walk->weights[point] * (o - z)) - all * before->gain[point];
                sums[point] = side ? sums[point] + all : all;
            }
            continue;
        }
        edge->o = o;
        for (int point = 0; point < count; point++) {
            double t = walk->points[point], weight = walk->weights[point];
            double no = z * (1 - t), no_inverse = 1 / no, yes_inverse = 1 / (t + no);
            double no_gain = -weight * z * no_inverse, yes_gain = weight * (1 - z) * yes_inverse;
            edge->inverse[point] = o * yes_inverse + (1 - o) * no_inverse; /* they may be of very different sizes */
            edge->gain[point] = o * yes_gain + (1 - o) * no_gain;
            own[point] = products[point] * (no + o * t) * before->inverse[point];
        }
        visit(walk, child, depth + 1, own, below);
        for (int point = 0; point < count; point++) {
            adds += below[point] * (edge->gain[point] - before->gain[point]);
            sums[point] = side ? sums[point] + below[point] : below[point];
        }
    }
    walk->adds[feature] += adds;
}

static void
fill(Walk *walk, const Node *nodes, const Way *ways, const int32_t *roots, Py_ssize_t trees, const float *matrix,
     Py_ssize_t columns, Py_ssize_t rows, double *found)
{
    Lanes products[MAX_POINTS], sums[MAX_POINTS];
    const Lanes none = {0};
    walk->edges[0].o = none + 1;
    for (int point = 0; point < walk->count; point++) {
        walk->edges[0].inverse[point] = products[point] = none + 1;
        walk->edges[0].gain[point] = none;
    }
    for (Py_ssize_t row = 0; row < rows; row += LANES) {
        for (int lane = 0; lane < LANES; lane++) /* the last row stands for those that are not there */
            walk->rows[lane] = matrix + (row + lane < rows ? row + lane : rows - 1) * columns;
        memset(walk->adds, 0, (size_t)columns * sizeof(Lanes));
        for (Py_ssize_t tree = 0; tree < trees; tree++) {
            walk->nodes = nodes + roots[tree];
            walk->ways = ways + roots[tree];
            if (walk->nodes->child) /* a tree of one leaf adds to no feature */
                visit(walk, 0, 0, products, sums);
        }
        for (int lane = 0; lane < LANES && row + lane < rows; lane++)
            for (Py_ssize_t column = 0; column < columns; column++)
                found[(row + lane) * columns + column] = walk->adds[column][lane];
    }
}

static PyObject *
contributions(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer nodes, ways, roots, points, weights, matrix, found;
    Py_ssize_t columns;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*y*nw*", &nodes, &ways, &roots, &points, &weights, &matrix, &columns, &found))
        return NULL;
    Py_ssize_t count = points.len / (Py_ssize_t)sizeof(double), rows = 0;
    int fits = columns > 0 && columns <= PY_SSIZE_T_MAX / (Py_ssize_t)sizeof(Lanes) && count > 0 && count <= MAX_POINTS
               && weights.len == points.len && ways.len == nodes.len;
    if (fits) {
        rows = found.len / (columns * (Py_ssize_t)sizeof(double));
        fits = matrix.len / (columns * (Py_ssize_t)sizeof(float)) == rows;
    }
    Walk *walk = fits ? PyMem_RawMalloc(sizeof(Walk)) : NULL;
    Lanes *adds = walk ? PyMem_RawMalloc((size_t)columns * sizeof(Lanes)) : NULL;
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "as many ways as nodes, weights as points and results as rows, and at most eight points");
    else if (!adds)
        PyErr_NoMemory();
    if (adds) {
        walk->points = points.buf;
        walk->weights = weights.buf;
        walk->count = (int)count;
        walk->adds = adds;
        Py_BEGIN_ALLOW_THREADS
        fill(walk, nodes.buf, ways.buf, roots.buf, roots.len / (Py_ssize_t)sizeof(int32_t), matrix.buf, columns, rows,
             found.buf);
        Py_END_ALLOW_THREADS
    }
    int done = adds != NULL;
    PyMem_RawFree(adds);
    PyMem_RawFree(walk);
    Py_buffer *all[] = {&nodes, &ways, &roots, &points, &weights, &matrix, &found};
    for (size_t each = 0; each < sizeof all / sizeof *all; each++)
        PyBuffer_Release(all[each]);
    if (!done)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"contributions", contributions, METH_VARARGS, "Fill an array with what each feature adds; see `shapley.Shapley`."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_shapley", .m_doc = "SHAP values, compiled.", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__shapley(void)
{
    return PyModuleDef_Init(&definition);
}
