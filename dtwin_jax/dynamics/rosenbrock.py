"""Rosenbrock steps of many stiff patients side by side: a Jacobian and a factorisation a step, no iteration.

For `y' = f(t, y)`, J = df/dy and W = I - h gamma J at the start of the step, the stages are

    W U_i = h gamma (f(t + c_i h, y + sum_j a_ij U_j) + h d_i df/dt) + gamma sum_j C_ij U_j

and the step ends at `y + sum_i b_i U_i`: the transformed form of Hairer & Wanner 1996, Solving Ordinary
Differential Equations II, IV.7, in which no product with the Jacobian is left. In stiffly accurate methods
the last stage is what is added to the solution of the embedded method, so it is the error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Up to so many states the Jacobian is found state by state, so that its zeros are known.
_FEW_STATES = 8
# Up to so many entries its factors are written out: of more, a compiler that fuses works each out for every
# use of it. (Measured: 6 states with 36 entries took 3.6 times as long as by LAPACK, 8 with 22 took 0.6.)
_FEW_ENTRIES = 24

Rows = list[Any]
Entries = dict[tuple[int, int], Any]


@dataclass(frozen=True)
class Tableau:
    """Coefficients of a stiffly accurate Rosenbrock method in transformed form.

    Attributes:
        order: of the method; its error estimate is of one less.
        gamma: of the diagonal.
        a, c: of each stage, its weights of the stages before it and its share of the step.
        C, d: of each stage, the weights that the transformation left and that of the rate's change in time.
        H: of the dense output, one row a power of the share.
    """

    order: int
    gamma: float
    a: tuple[tuple[float, ...], ...]
    c: tuple[float, ...]
    C: tuple[tuple[float, ...], ...]
    d: tuple[float, ...]
    H: tuple[tuple[float, ...], ...]


# fmt: off
_LAST4 = (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.6878860361058950)

#: RODAS of Hairer & Wanner 1996, IV.7, and of their program: six stages.
RODAS4 = Tableau(
    order=4,
    gamma=0.25,
    a=(
        (),
        (1.544,),
        (0.9466785280815826, 0.2557011698983284),
        (3.314825187068521, 2.896124015972201, 0.9986419139977817),
        _LAST4,
        (*_LAST4, 1.0),
    ),
    c=(0.0, 0.386, 0.21, 0.63, 1.0, 1.0),
    C=(
        (),
        (-5.6688,),
        (-2.430093356833875, -0.2063599157091915),
        (-0.1073529058151375, -9.594562251023355, -20.47028614809616),
        (7.496443313967647, -10.24680431464352, -33.99990352819905, 11.70890893206160),
        (8.083246795921522, -7.981132988064893, -31.52159432874371, 16.31930543123136, -6.058818238834054),
    ),
    d=(0.25, -0.1043, 0.1035, -0.0362, 0.0, 0.0),
    H=(
        (10.12623508344586, -7.487995877610167, -34.80091861555747, -7.992771707568823, 1.025137723295662,
         0.0),
        (-0.6762803392801253, 6.087714651680015, 16.43084320892478, 24.76722511418386, -6.594389125716872,
         0.0),
    ),
)

_LAST5 = (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256,
          0.030198172008377946)

#: Rodas5P of Steinebach 2023, doi 10.1007/s10543-023-00967-x: eight stages, made to lose no more than one
#: order where a fast rate follows a slow solution.
RODAS5P = Tableau(
    order=5,
    gamma=0.21193756319429014,
    a=(
        (),
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        _LAST5,
        (*_LAST5, 1.0),
        (*_LAST5, 1.0, 1.0),
    ),
    c=(0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1.0, 1.0, 1.0),
    C=(
        (),
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
        (30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783, -19.097331116725623,
         -28.087943162872662),
        (37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047, -40.06618937091002,
         -54.66780262877968, -9.48861652309627),
    ),
    d=(0.21193756319429014, -0.42387512638858027, -0.3384627126235924, 1.8046452872882734, 2.325825639765069,
       0.0, 0.0, 0.0),
    H=(
        (25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204, 0.524948541321073,
         1.1241088310450404, 0.4272876194431874, -0.17202221070155493),
        (-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796, 20.176138334709044,
         15.98066361424651, -6.789040303419874, -6.710236069923372),
        (11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643, -52.072871366152654,
         -59.78993625266729, -0.15582684282751913, 4.883087185713722),
    ),
)
# fmt: on


@dataclass(frozen=True)
class Rosenbrock:
    """A linearly implicit method for stiff models, by default Rodas5P.

    The Jacobian is exact, by forward derivatives of the rate, so it holds for any model without being written
    down. States are structs of arrays whose last axis is the lane; a step size and a time are one a lane.

    Of few states factors are taken without exchanging rows: should a pivot vanish, the state is not finite,
    and the shorter step that follows has a matrix nearer the identity.
    """

    table: Tableau = RODAS5P

    @property
    def order(self) -> int:
        """Of the error estimate, plus one: what the step size is the root of."""
        return self.table.order

    def start(self, rate: Callable[..., Any], t: Any, y: Any) -> Any:
        """What a first step wants to know: nothing, as the rate comes with the Jacobian."""
        return ()

    def step(self, rate: Callable[..., Any], t: Any, y: Any, first: Any, h: Any) -> tuple[Any, Any, Any, Any]:
        """The state after `h`, its error, nothing and what `curve` needs."""
        rows, whole = _split(y)

        def slope(t: Any, rows: Rows) -> Rows:
            return _split(rate(t, whole(rows)))[0]

        table, width = self.table, self.table.gamma * h
        local = _linearised(slope, t, rows)
        in_time = [None if change is None else width * h * change for change in local.in_time]
        solve = _factorised(local.jacobian, width, len(rows))
        moved, stages = rows, []
        for a, c, C, d in zip(table.a, table.c, table.C, table.d, strict=True):
            moved = _moved(rows, a, stages)
            found = slope(t + c * h, moved) if stages else local.slope
            right = _moved([width * f for f in found], [table.gamma * each for each in C], stages)
            stages.append(solve(_moved(right, [d], [in_time])))
        end = _moved(moved, [1.0], stages[-1:])
        return whole(end), whole(stages[-1]), first, [whole(stage) for stage in stages]

    def curve(self, y: Any, h: Any, stages: Any) -> list[Any]:
        """The state within the step, a polynomial of its share: coefficients from the constant up."""
        rows, whole = _split(y)
        parts = [_split(stage)[0] for stage in stages]
        nothing = [None] * len(rows)
        return [y] + [whole(_moved(nothing, weights, parts)) for weights in _curve_weights(self.table)]


def _curve_weights(table: Tableau) -> list[list[float]]:
    """Weights of the stages in the coefficients of the curve, from the linear one up.

    The curve is `(1 - s) y + s (y1 + (1 - s) (k1 + s (k2 + ...)))`, k = H U, written out in powers of s.
    """
    end = (*table.a[-1], 1.0)
    none = (0.0,) * len(end)
    before, after = (none, *table.H), (*table.H, none)
    powers = [[up - down for up, down in zip(*pair, strict=True)] for pair in zip(after, before, strict=True)]
    return [[b + w for b, w in zip(end, powers[0], strict=True)], *powers[1:]]


def _moved(rows: Rows, weights: Any, stages: list[Rows]) -> Rows:
    """`rows + sum of weights * stages`; without what is None or weighs nothing."""
    used = [(w, stage) for w, stage in zip(weights, stages, strict=True) if w != 0.0]
    found = []
    for i, row in enumerate(rows):
        terms = [w * stage[i] for w, stage in used if stage[i] is not None]
        found.append(sum(terms[1:], terms[0]) if row is None else sum(terms, row))
    return found


def _split(y: Any) -> tuple[Rows, Callable[[Rows], Any]]:
    """A struct as one (lane,) array a state, and the way back."""
    leaves, structure = jax.tree.flatten(y)
    rows = [row for leaf in leaves for row in (leaf.reshape(-1, leaf.shape[-1]) if leaf.ndim > 1 else [leaf])]

    def whole(rows: Rows) -> Any:
        found, start = [], 0
        for leaf in leaves:
            own = rows[start : start + leaf[..., 0].size]
            found.append(jnp.stack(own).reshape(leaf.shape) if leaf.ndim > 1 else own[0])
            start += len(own)
        return jax.tree.unflatten(structure, found)

    return rows, whole


class _Local(NamedTuple):
    """The rate at the start of a step, and how it changes.

    Attributes:
        slope: the rate, a row a state.
        jacobian: entries by state of the rate and state it is derived by, those missing that are always zero;
            of many states an array (of, by, lane).
        in_time: a row a state, None where time does not enter.
    """

    slope: Rows
    jacobian: Any
    in_time: list[Any]


def _linearised(slope: Callable[[Any, Rows], Rows], t: Any, rows: Rows) -> _Local:
    in_time = _derivative(lambda t: slope(t, rows), t)
    if len(rows) > _FEW_STATES:
        found, tangent = jax.linearize(lambda rows: slope(t, rows), rows)
        units = jnp.broadcast_to(jnp.eye(len(rows))[..., None], (len(rows), len(rows), *t.shape))
        return _Local(found, jnp.stack(jax.vmap(tangent)(list(units))), in_time)
    jacobian: Entries = {}
    for j, row in enumerate(rows):
        column = _derivative(lambda x, j=j: slope(t, [*rows[:j], x, *rows[j + 1 :]]), row)
        jacobian |= {(i, j): entry for i, entry in enumerate(column) if entry is not None}
    return _Local(slope(t, rows), jacobian, in_time)


def _derivative(function: Callable[[Any], Rows], x: Any) -> list[Any]:
    """Derivatives of some rows by `x`, element by element; None of a row that `x` cannot change.

    A tangent that is zero whatever the numbers is told apart only until `jvp` returns, so it is asked inside.
    """
    moved: set[int] = set()

    def row(i: int, found: Any) -> Any:
        same = jax.custom_jvp(lambda found: found)

        def told(primal: Any, tangent: Any) -> Any:
            if not isinstance(tangent[0], jax.custom_derivatives.SymbolicZero):
                moved.add(i)
            return primal[0], tangent[0]

        same.defjvp(told, symbolic_zeros=True)
        return same(found)

    def rows(x: Any) -> Rows:
        return [row(i, found) for i, found in enumerate(function(x))]

    _, column = jax.jvp(rows, (x,), (jnp.ones_like(x),))
    return [entry if i in moved else None for i, entry in enumerate(column)]


def _factorised(jacobian: Any, width: Any, count: int) -> Callable[[Rows], Rows]:
    """Solves `(I - width * jacobian) x = right`, factorised once."""
    if not isinstance(jacobian, dict):
        return _factorised_whole(jnp.eye(count)[..., None] - width[None, None] * jacobian)
    matrix = {place: -width * entry for place, entry in jacobian.items()}
    for i in range(count):
        matrix[i, i] = 1.0 + matrix[i, i] if (i, i) in matrix else jnp.ones_like(width)
    order, filled = _elimination(set(matrix), count)
    if len(filled) > _FEW_ENTRIES:
        zero = jnp.zeros_like(width)
        lines = [jnp.stack([matrix.get((i, j), zero) for j in range(count)]) for i in range(count)]
        return _factorised_whole(jnp.stack(lines))
    inverse: dict[int, Any] = {}
    for place, k in enumerate(order):
        inverse[k] = 1.0 / matrix[k, k]
        rest = order[place + 1 :]
        for i in (i for i in rest if (i, k) in matrix):
            matrix[i, k] = matrix[i, k] * inverse[k]
            for j in (j for j in rest if (k, j) in matrix):
                change = matrix[i, k] * matrix[k, j]
                matrix[i, j] = matrix[i, j] - change if (i, j) in matrix else -change

    def solve(right: Rows) -> Rows:
        x = list(right)
        for place, k in enumerate(order):
            x[k] = sum((-matrix[k, j] * x[j] for j in order[:place] if (k, j) in matrix), x[k])
        for place, k in reversed(list(enumerate(order))):
            after = (-matrix[k, j] * x[j] for j in order[place + 1 :] if (k, j) in matrix)
            x[k] = sum(after, x[k]) * inverse[k]
        return x

    return solve


def _elimination(entries: set[tuple[int, int]], count: int) -> tuple[list[int], set[tuple[int, int]]]:
    """The order of the pivots, and the entries with those that it fills.

    The next pivot is always the one that fills fewest (Markowitz 1957, on the diagonal).
    """
    entries, left, order = set(entries), set(range(count)), []
    while left:
        under = {k: [i for i in left if i != k and (i, k) in entries] for k in left}
        beside = {k: [j for j in left if j != k and (k, j) in entries] for k in left}
        k = min(sorted(left), key=lambda k: len(under[k]) * len(beside[k]))
        entries |= {(i, j) for i in under[k] for j in beside[k]}
        left.remove(k)
        order.append(k)
    return order, entries


def _factorised_whole(matrix: Any) -> Callable[[Rows], Rows]:
    """Solves `matrix x = right`, of an array (row, column, lane), by LAPACK with exchange of rows."""
    factors = jax.vmap(jax.scipy.linalg.lu_factor, in_axes=-1)(matrix)

    def solve(right: Rows) -> Rows:
        found = jax.vmap(jax.scipy.linalg.lu_solve)(factors, jnp.stack(right, axis=-1))
        return list(found.T)

    return solve
