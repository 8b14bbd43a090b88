// exp and the activations on sixteen lanes: the same instructions for every lane, so a value's bits never depend on
// where in a row or batch it stands. Compiled without contraction; fused steps are written out.
#pragma once

namespace ISA {

// exp(x) by Cody-Waite reduction and a degree-6 polynomial, relative error below 2e-7; exactly 0 below -87.
// NaN stays NaN: of two operands min returns the second when one is NaN.
inline F16 exp(F16 x) {
    const F16 limited = min(fill(88.0f), x);
    const F16 n = round_even(mul(limited, fill(1.44269504f)));
    const F16 r = fma(n, fill(2.12194440e-4f), fma(n, fill(-0.693359375f), limited));
    F16 p = fill(1.9875691500e-4f);
    p = fma(p, r, fill(1.3981999507e-3f));
    p = fma(p, r, fill(8.3334519073e-3f));
    p = fma(p, r, fill(4.1665795894e-2f));
    p = fma(p, r, fill(1.6666665459e-1f));
    p = fma(p, r, fill(5.0000001201e-1f));
    p = fma(p, mul(r, r), add(r, fill(1.0f)));
    return where_less(x, fill(-87.0f), zero(), scale_by_power(p, n));
}

inline F16 sigmoid(F16 x) { return div(fill(1.0f), add(fill(1.0f), exp(sub(zero(), x)))); }
inline F16 silu(F16 x) { return mul(x, sigmoid(x)); }
inline F16 relu(F16 x) { return where_less(x, zero(), zero(), x); }  // keeps NaN

// x (1 + tanh(u)) / 2 = x sigmoid(2 u) (Hendrycks and Gimpel 2016).
inline F16 gelu_tanh(F16 x) {
    const F16 cube = mul(mul(x, x), x);
    return mul(x, sigmoid(mul(fill(1.5957691216f), fma(cube, fill(0.044715f), x))));
}

// erf by Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7.
inline F16 gelu(F16 x) {
    const F16 z = mul(x, fill(0.70710678f));
    const F16 size = max(z, sub(zero(), z));
    const F16 t = div(fill(1.0f), fma(size, fill(0.3275911f), fill(1.0f)));
    F16 p = fill(1.061405429f);
    p = fma(p, t, fill(-1.453152027f));
    p = fma(p, t, fill(1.421413741f));
    p = fma(p, t, fill(-0.284496736f));
    p = fma(p, t, fill(0.254829592f));
    const F16 erf = sub(fill(1.0f), mul(mul(p, t), exp(sub(zero(), mul(size, size)))));
    const F16 signed_erf = where_less(z, zero(), sub(zero(), erf), erf);
    return mul(mul(fill(0.5f), x), add(fill(1.0f), signed_erf));
}

}  // namespace ISA
