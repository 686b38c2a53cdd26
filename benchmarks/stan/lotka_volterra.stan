// Lynx and hare of the Hudson Bay, priors and data of posteriordb (hudson_lynx_hare-lotka_volterra).
functions {
  vector rate(real t, vector x, real a, real b, real g, real d) {
    return [(a - b * x[2]) * x[1], (-g + d * x[1]) * x[2]]';
  }
}
data {
  int<lower=1> N;
  array[N] real time;
  array[2] real first;
  array[N, 2] real seen;
}
parameters {
  real<lower=0> a;
  real<lower=0> b;
  real<lower=0> g;
  real<lower=0> d;
  real<lower=0> hare0;
  real<lower=0> lynx0;
  real<lower=0> sd_hare;
  real<lower=0> sd_lynx;
}
model {
  a ~ normal(1, 0.5);
  g ~ normal(1, 0.5);
  b ~ normal(0.05, 0.05);
  d ~ normal(0.05, 0.05);
  hare0 ~ lognormal(log(10), 1);
  lynx0 ~ lognormal(log(10), 1);
  sd_hare ~ lognormal(-1, 1);
  sd_lynx ~ lognormal(-1, 1);
  array[N] vector[2] x = ode_rk45_tol(rate, [hare0, lynx0]', 0.0, time, 1e-5, 1e-6, 500, a, b, g, d);
  first[1] ~ lognormal(log(hare0), sd_hare);
  first[2] ~ lognormal(log(lynx0), sd_lynx);
  seen[, 1] ~ lognormal(log(x[, 1]), sd_hare);
  seen[, 2] ~ lognormal(log(x[, 2]), sd_lynx);
}
