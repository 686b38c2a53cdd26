// Glucose minimal model with measured insulin, linear between its samples (dtwin_jax/models/minimal_model.py).
functions {
  vector rate(real t, vector y, real SG, real p2, real SI, real Gb, real Ib,
              array[] real knot, array[] real level) {
    int last = size(knot);
    int k = 1;
    while (k < last - 1 && t >= knot[k + 1]) k += 1;
    real share = fmin(fmax((t - knot[k]) / (knot[k + 1] - knot[k]), 0), 1);
    real insulin = level[k] + share * (level[k + 1] - level[k]);
    return [-(SG + y[2]) * y[1] + SG * Gb, -p2 * y[2] + p2 * SI * (insulin - Ib)]';
  }
}
data {
  int<lower=1> N;
  array[N] real time;
  vector[N] glucose;
  int<lower=2> K;
  array[K] real knot;
  array[K] real level;
}
parameters {
  real<lower=0> SG;
  real<lower=0> p2;
  real<lower=0> SI;
  real<lower=0> G0;
  real<lower=0> Gb;
  real<lower=0> Ib;
  real<lower=0> sd;
}
model {
  SG ~ lognormal(log(0.0192), 0.210);
  p2 ~ lognormal(log(0.0254), 0.379);
  SI ~ lognormal(log(3.5e-4), 0.475);
  G0 ~ lognormal(log(268.0), 0.2);
  Gb ~ lognormal(log(90.0), sqrt(log1p(square(0.05))));
  Ib ~ lognormal(log(7.0), sqrt(log1p(square(0.2))));
  sd ~ lognormal(log(4.28), 0.5);
  array[N] vector[2] y = ode_rk45_tol(rate, [G0, 0]', 0.0, time, 1e-6, 1e-8, 4096, SG, p2, SI, Gb, Ib, knot, level);
  glucose ~ normal(y[, 1], sd);
}
