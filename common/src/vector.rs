//! Loops with the widest vectors that this CPU has, although the program is built for every CPU.
//!
//! [`vectorized`](crate::vectorized) compiles an expression once for each generation of vector instructions and picks one at run
//! time. Every float operation in it is rounded on its own, and none is reordered, so all of them give the same bits.

#[doc(hidden)]
pub use pulp;

/// What [`vectorized`](crate::vectorized) computes. `FnMut` although it is called once: a closure that could be called again is
/// called as `FnOnce` through a function of its own, which would be compiled for every CPU.
#[derive(Debug)]
pub struct Work<F>(pub F);

impl<R, F: FnMut() -> R> pulp::WithSimd for Work<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// Computes an expression with the vector instructions of this CPU. What it calls must be `#[inline(always)]`.
#[macro_export]
macro_rules! vectorized {
    ($work:expr) => {
        $crate::vector::pulp::Arch::new().dispatch($crate::vector::Work(
            #[inline(always)]
            || $work,
        ))
    };
}
