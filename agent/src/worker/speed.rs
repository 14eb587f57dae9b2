//! How fast this machine multiplies matrices with the native trainer's arithmetic.

use burn_flex::Flex;
use burn_tensor::Tensor;

use crate::clock::Clock;

/// Rows and columns of the products, smallest first.
const SIZES: [usize; 4] = [128, 256, 512, 1024];
/// A product that takes this long tells the speed. One of twice the size takes eight times as long.
const ENOUGH_SECONDS: f64 = 0.005;

/// Returns the speed of `threads` threads (`None`: one for each core) in floating-point operations a second, at least 1.
/// Takes at most about 0.1 s.
///
/// # Errors
/// The system has no threads to give.
pub fn flops_per_s(threads: Option<usize>) -> std::io::Result<u64> {
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build().map_err(std::io::Error::other)?;
    Ok(pool.install(|| {
        // What is set up once does not count.
        product_s(SIZES[0] / 2);
        let mut speed = 1.0;
        for size in SIZES {
            let took_s = product_s(size);
            speed = 2.0 * (size as f64).powi(3) / took_s;
            if took_s >= ENOUGH_SECONDS {
                break;
            }
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a speed, far below 2^64")]
        let speed = speed as u64;
        speed.max(1)
    }))
}

/// Multiplies two square matrices. Returns how long that took, in seconds above 0.
fn product_s(size: usize) -> f64 {
    let device = Default::default();
    let [left, right] = [0.5, 0.25].map(|value| Tensor::<Flex, 2>::full([size, size], value, &device));
    let clock = Clock::start();
    let product = std::hint::black_box(left.matmul(right));
    let took_s = clock.elapsed().as_secs_f64();
    drop(product);
    took_s.max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_a_speed_with_any_number_of_threads() {
        for threads in [None, Some(1)] {
            let speed = flops_per_s(threads).expect("threads");
            assert!(speed > 1_000_000, "{speed} operations a second are fewer than any machine computes");
        }
    }
}
