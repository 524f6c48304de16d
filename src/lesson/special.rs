//! The functions behind Beta(α, α).
//!
//! Density `x^(α−1)·(1−x)^(α−1)·Γ(2α)/Γ(α)²` (Abramowitz & Stegun, §6.2 and §26.5).

/// Γ(2α) leaves the range of f64 above α = 85.8; from here on logarithms are subtracted instead.
const ALPHA_DIRECT_MAX: f64 = 80.0;

/// Γ(x): the factorial `(x−1)!` carried on to real numbers.
pub fn gamma(x: f64) -> f64 {
    libm::tgamma(x)
}

/// `ln |Γ(x)|`, which stays finite where Γ overflows (x > 171.6).
pub fn ln_gamma(x: f64) -> f64 {
    libm::lgamma(x)
}

/// Density of Beta(α, α) at `x`; 0 outside [0, 1], +∞ at both ends for α < 1.
///
/// `alpha` is positive and finite.
pub fn beta_density(alpha: f64, x: f64) -> f64 {
    if !(0.0..=1.0).contains(&x) {
        return 0.0;
    }
    if alpha <= ALPHA_DIRECT_MAX {
        // Divided twice, because Γ(α)² overflows for a tiny or a large α long before the quotient does.
        gamma(2.0 * alpha) / gamma(alpha) / gamma(alpha) * x.powf(alpha - 1.0) * (1.0 - x).powf(alpha - 1.0)
    } else {
        let powers = (alpha - 1.0) * (x.ln() + (-x).ln_1p());
        (ln_gamma(2.0 * alpha) - 2.0 * ln_gamma(alpha) + powers).exp()
    }
}

/// Density of `λ = max(r, 1−r)`, `r ~ Beta(α, α)`: twice the unfolded density on [0.5, 1], 0 elsewhere.
pub fn folded_density(alpha: f64, lambda: f64) -> f64 {
    if lambda < 0.5 { 0.0 } else { 2.0 * beta_density(alpha, lambda) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;
    use std::path::Path;

    fn column(tensors: &SafeTensors<'_>, name: &str) -> Vec<f64> {
        let data = tensors.tensor(name).unwrap();
        data.data().chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    fn assert_close(found: f64, golden: f64, what: &str) {
        let close = found == golden || (found - golden).abs() <= 1e-12 * golden.abs();
        assert!(close, "{what}: {found} instead of {golden}");
    }

    #[test]
    fn density_and_gamma_match_the_goldens() {
        crate::fixtures::roots().for_each(|root| functions_pass(&root));
    }

    fn functions_pass(root: &Path) {
        let bytes = std::fs::read(root.join("beta.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let (alphas, xs, density) = (column(&tensors, "alphas"), column(&tensors, "x"), column(&tensors, "density"));
        assert_eq!(density.len(), alphas.len() * xs.len());
        for (alpha, row) in alphas.iter().zip(density.chunks_exact(xs.len())) {
            for (x, golden) in xs.iter().zip(row) {
                assert_close(beta_density(*alpha, *x), *golden, &format!("density of Beta({alpha}) at {x}"));
            }
        }
        let (goldens, logs) = (column(&tensors, "gamma"), column(&tensors, "lgamma"));
        for ((x, golden), log) in column(&tensors, "gamma_x").into_iter().zip(goldens).zip(logs) {
            assert_close(gamma(x), golden, &format!("gamma({x})"));
            // Near its zeros at 1 and 2 the logarithm is compared absolutely.
            assert!((ln_gamma(x) - log).abs() <= 1e-12 * log.abs().max(1.0), "ln gamma({x})");
        }
    }

    #[test]
    fn both_ways_to_the_density_agree_where_they_meet() {
        for x in [0.3, 0.5, 0.61] {
            let (below, above) = (beta_density(ALPHA_DIRECT_MAX, x), beta_density(ALPHA_DIRECT_MAX.next_up(), x));
            assert!((below / above - 1.0).abs() < 1e-11, "{below} and {above} at {x}");
        }
    }

    #[test]
    fn folded_density_holds_all_the_mass_above_a_half() {
        assert_eq!(folded_density(2.0, 0.49), 0.0);
        let n = 10_000;
        let mass: f64 = (0..n).map(|i| folded_density(2.0, 0.5 + (i as f64 + 0.5) / n as f64 / 2.0)).sum();
        assert!((mass / n as f64 / 2.0 - 1.0).abs() < 1e-6);
        assert_eq!(beta_density(0.4, 1.0), f64::INFINITY);
        assert_eq!(beta_density(0.4, 1.5), 0.0);
    }
}
