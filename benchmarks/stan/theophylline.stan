// One oral dose into one compartment, in closed form; 12 patients who share typical values and scatter.
data {
  int<lower=1> P;
  int<lower=1> N;
  vector[P] dose;
  matrix[P, N] time;
  matrix[P, N] concentration;
}
parameters {
  vector<lower=0>[3] typical;
  real<lower=0> sd;
  vector<lower=0>[3] omega;
  matrix[P, 3] individual;
}
model {
  typical ~ lognormal(log([1.5, 3.0, 30.0]'), 1);
  sd ~ lognormal(log(0.7), 1);
  omega ~ normal(0, 0.5);
  for (i in 1:3) individual[, i] ~ normal(log(typical[i]), omega[i]);
  for (p in 1:P) {
    real ka = exp(individual[p, 1]);
    real k = exp(individual[p, 2] - individual[p, 3]);
    real scale = dose[p] * ka / (exp(individual[p, 3]) * (ka - k));
    concentration[p] ~ normal(scale * (exp(-k * time[p]) - exp(-ka * time[p])), sd);
  }
}
