//! Loops over `f32` with the widest vectors that this CPU has, although the program is built for every CPU.
//!
//! [`vectorized`] compiles an expression once for each generation of vector instructions and picks one at run time. Every
//! float operation in it is rounded on its own and none is reordered, so all of them give the same bits.

/// What [`vectorized`] computes. `FnMut` although it is called once: a closure that could be called again is called as
/// `FnOnce` through a function of its own, which would be compiled for every CPU.
pub(super) struct Work<F>(pub(super) F);

impl<R, F: FnMut() -> R> pulp::WithSimd for Work<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// Computes an expression with the vector instructions of this CPU. What it calls must be `#[inline(always)]`.
macro_rules! vectorized {
    ($work:expr) => {
        pulp::Arch::new().dispatch($crate::codec::vector::Work(
            #[inline(always)]
            || $work,
        ))
    };
}
pub(super) use vectorized;

/// The key of infinity: every finite value has a smaller one, every other value this one or a larger one.
pub(super) const INFINITE: u32 = 0x7F80_0000;

/// Returns the bits without the sign. The order of magnitudes is the order of their keys.
#[inline(always)]
pub(super) fn key(value: f32) -> u32 {
    value.to_bits() & 0x7FFF_FFFF
}

/// Returns the largest key; 0 of no values.
#[inline(always)]
pub(super) fn largest_key(values: &[f32]) -> u32 {
    values.iter().fold(0, |largest, value| largest.max(key(*value)))
}
