"""Compiled ahead: a solver of the minimal model in C++, and LSODA of numbalsoda; each if it is there.

The C++ takes the same steps as lanes do (Tsit5 by the numbers of Diffrax, an own step size for each patient,
a stop at every corner of insulin, dense output), one patient after the other. It needs `g++`; numbalsoda is a
package that has to be built (cmake, gfortran).
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import diffrax
import numpy as np

from dtwin_jax.dynamics.explicit import weights_within

CODE = r"""
#include <algorithm>
#include <cmath>
using std::abs; using std::max; using std::min;
static const int S = 7;
TABLES
struct Patient { double SG, p2, SI, G0, Gb, Ib; };

extern "C" void glucose(long patients, const Patient* all, long corners, const double* at,
                        const double* insulin, long n, const double* times, double rtol, double atol,
                        double* out) {
  for (long i = 0; i < patients; ++i) {
    const Patient p = all[i];
    double* mine = out + i * n;
    double y[2] = {p.G0, 0.0}, k[S][2], t = times[0], h = 0.1;
    const double end = times[n - 1];
    long piece = 0, cursor = 0;
    double base = 0, slope = 0, from = 0;
    auto enter = [&] {
      while (piece + 2 < corners && at[piece + 1] <= t) ++piece;
      from = at[piece]; base = insulin[piece];
      slope = (insulin[piece + 1] - base) / (at[piece + 1] - from);
    };
    auto rate = [&](double s, const double* x, double* f) {
      f[0] = -(p.SG + x[1]) * x[0] + p.SG * p.Gb;
      f[1] = -p.p2 * x[1] + p.p2 * p.SI * (base + slope * (s - from) - p.Ib);
    };
    while (cursor < n && times[cursor] <= t) mine[cursor++] = y[0];
    enter();
    rate(t, y, k[0]);
    while (cursor < n) {
      const double stop = min(end, piece + 2 < corners ? at[piece + 1] : end);
      const bool ends = h >= stop - t;
      const double step = ends ? stop - t : h;
      double next[2];
      for (int s = 1; s < S; ++s) {
        double sum[2] = {0, 0};
        for (int j = 0; j < s; ++j) for (int q = 0; q < 2; ++q) sum[q] += A[s - 1][j] * k[j][q];
        for (int q = 0; q < 2; ++q) next[q] = y[q] + step * sum[q];
        rate(t + C[s - 1] * step, next, k[s]);
      }
      double size = 0;
      for (int q = 0; q < 2; ++q) {
        double error = 0;
        for (int s = 0; s < S; ++s) error += E[s] * k[s][q];
        const double share = step * error / (atol + rtol * max(abs(y[q]), abs(next[q])));
        size += share * share / 2;
      }
      size = std::sqrt(size);
      const double factor = min(10.0, max(0.2, 0.9 * std::pow(max(size, 1e-10), -0.2)));
      if (size <= 1) {
        const double reached = ends ? stop : t + step;
        for (; cursor < n && times[cursor] <= reached; ++cursor) {
          const double share = (times[cursor] - t) / step;
          double value = 0;
          for (int s = 0; s < S; ++s) {
            double weight = 0;
            for (int c = DEGREE; c > 0; --c) weight = (weight + W[s][c]) * share;
            value += weight * k[s][0];
          }
          mine[cursor] = y[0] + step * value;
        }
        t = reached;
        for (int q = 0; q < 2; ++q) { y[q] = next[q]; k[0][q] = k[S - 1][q]; }
        h = ends ? max(step * factor, h) : step * factor;
        if (ends) enter();
      } else {
        h = step * min(factor, 1.0);
      }
    }
  }
}
"""


def _tables() -> str:
    """Numbers of Tsit5 as constants of C++."""
    table, weights = diffrax.Tsit5.tableau, weights_within(diffrax.Tsit5)
    rows = np.zeros((6, 6))
    for i, row in enumerate(table.a_lower):
        rows[i, : len(row)] = row
    listed = lambda x: "{" + ",".join(listed(one) if np.ndim(one) else repr(float(one)) for one in x) + "}"  # noqa: E731
    return "\n".join(
        [
            f"static const int DEGREE = {weights.shape[1] - 1};",
            f"static constexpr double A[6][6] = {listed(rows)};",
            f"static constexpr double C[6] = {listed(table.c)};",
            f"static constexpr double E[7] = {listed(table.b_error)};",
            f"static constexpr double W[7][{weights.shape[1]}] = {listed(weights)};",
        ]
    )


@functools.cache
def _library() -> Any:
    compiler = shutil.which("g++")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp())
    (folder / "glucose.cpp").write_text(CODE.replace("TABLES", _tables()))
    command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", "glucose.so", "glucose.cpp"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "glucose.so"))


def glucose_in_cpp(insulin: Any, rtol: float, atol: float) -> Any:
    """`(parameters, times) -> glucose (patient, n)`; None without `g++`."""
    library = _library()
    if library is None:
        return None
    corners, level = (np.ascontiguousarray(x, float) for x in (insulin.time, insulin.value))

    def run(p: dict[str, Any], times: Any) -> np.ndarray:
        rows = np.stack([np.asarray(p[name]) for name in ("SG", "p2", "SI", "G0", "Gb", "Ib")], axis=1)
        times = np.ascontiguousarray(times, float)
        found = np.empty((len(rows), len(times)))
        place = lambda x: x.ctypes.data_as(ctypes.c_void_p)  # noqa: E731
        rows = np.ascontiguousarray(rows)
        library.glucose(
            ctypes.c_long(len(rows)),
            place(rows),
            ctypes.c_long(len(corners)),
            place(corners),
            place(level),
            ctypes.c_long(len(times)),
            place(times),
            ctypes.c_double(rtol),
            ctypes.c_double(atol),
            place(found),
        )
        return found

    return run


def binding_by_numbalsoda(names: tuple[str, ...], rtol: float, atol: float) -> Any:
    """`(parameters, times) -> free drug (patient, n)` of target-mediated disposition, if numbalsoda is there.

    `names` are (C0, kel, kpt, ktp, kon, koff, kint, kdeg, R0).
    """
    try:
        import numba
        from numbalsoda import lsoda, lsoda_sig
    except ImportError:
        return None

    @numba.cfunc(lsoda_sig)
    def rates(t, y_, dy_, p_):
        y, dy, p = numba.carray(y_, (4,)), numba.carray(dy_, (4,)), numba.carray(p_, (9,))
        made = p[4] * y[0] * y[2] - p[5] * y[3]
        exchanged = p[2] * y[0] - p[3] * y[1]
        dy[0] = -p[1] * y[0] - exchanged - made
        dy[1] = exchanged
        dy[2] = p[7] * (p[8] - y[2]) - made
        dy[3] = made - p[6] * y[3]

    address = rates.address

    @numba.njit
    def solved(rows, times):
        found = np.empty((len(rows), len(times)))
        for i in range(len(rows)):
            start = np.array([rows[i, 0], 0.0, rows[i, 8], 0.0])
            states, _ = lsoda(address, start, times, data=rows[i], rtol=rtol, atol=atol)
            found[i] = states[:, 0]
        return found

    def run(p: dict[str, Any], times: Any) -> np.ndarray:
        rows = np.ascontiguousarray(np.stack([np.asarray(p[name]) for name in names], axis=1))
        return solved(rows, np.ascontiguousarray(times, float))

    return run
