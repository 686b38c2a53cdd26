"""Student's t below a limit: by SciPy; derivatives by degrees of freedom by extrapolating its values."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from dtwin_jax.core.tails import log_cdf, log_survival, student_cdf

Z = np.array([-40.0, -5.0, -1.0, 0.3, 4.0, 30.0])


def by_df(df):
    """d P(T <= z) / d df: of the tails, which have digits where the probability is near 1."""

    def tail(at):
        return -np.sign(Z) * stats.t.cdf(-np.abs(Z), at)

    table = []
    for row in range(6):
        h = 0.02 * df / 2**row
        table.append([(tail(df + h) - tail(df - h)) / (2 * h)])
        for j in range(1, row + 1):
            better = table[row][j - 1]
            table[row].append(better + (better - table[row - 1][j - 1]) / (4**j - 1))
    return table[5][4]


@pytest.fixture(scope="module")
def sloped():
    return jax.jit(
        lambda df: jax.jvp(lambda df: student_cdf(jnp.asarray(Z), df), (df,), (jnp.ones_like(df),))
    )


@pytest.mark.parametrize("df", [0.7, 2.5, 4.0, 30.0])
def test_the_derivative_by_degrees_of_freedom_is_that_of_scipys_values(sloped, df):
    value, slope = sloped(jnp.full(Z.shape, df))
    np.testing.assert_allclose(value, stats.t.cdf(Z, df), rtol=1e-12)
    np.testing.assert_allclose(slope, by_df(df), rtol=1e-8)


def test_both_tails_keep_their_digits():
    d = dist.StudentT(5.0, 1.0, 0.5)
    truth = stats.t(5.0, 1.0, 0.5)
    x = np.array([-1e6, -3.0, 1.0, 4.0, 1e6])
    np.testing.assert_allclose(log_cdf(d, x)[:4], truth.logcdf(x)[:4], rtol=1e-10)
    np.testing.assert_allclose(log_survival(d, x), truth.logcdf(2.0 - x), rtol=1e-10, atol=1e-15)
