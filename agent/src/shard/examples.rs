//! A shard in memory.

use super::Shard;

/// The inputs of all examples, row-major, one after another, in the type they were stored in.
#[derive(Debug, Clone, PartialEq)]
pub enum Inputs {
    /// Bytes: a quarter of the memory of floats, which is what image data need.
    Bytes(Vec<u8>),
    /// Single-precision numbers.
    Floats(Vec<f32>),
}

impl Inputs {
    /// Number of values, over all examples.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(values) => values.len(),
            Self::Floats(values) => values.len(),
        }
    }

    /// Whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Labelled examples in memory.
#[derive(Clone)]
pub struct Examples {
    inputs: Inputs,
    labels: Vec<u32>,
    input_shape: Vec<u64>,
    values_per_example: usize,
    classes: u32,
    columns: Option<Vec<String>>,
}

impl Examples {
    /// Puts examples together: `inputs` holds as many values as `labels.len()` examples of `input_shape` have; `None`
    /// where it does not, or where a shape is empty or a label is `u32::MAX`.
    #[must_use]
    pub fn new(inputs: Inputs, labels: Vec<u32>, input_shape: Vec<u64>) -> Option<Self> {
        let product = input_shape.iter().try_fold(1u64, |product, extent| product.checked_mul(*extent))?;
        let values_per_example = usize::try_from(product).ok().filter(|n| *n > 0)?;
        if values_per_example.checked_mul(labels.len()) != Some(inputs.len()) {
            return None;
        }
        let classes = labels.iter().max().map_or(Some(0), |label| label.checked_add(1))?;
        Some(Self { inputs, labels, input_shape, values_per_example, classes, columns: None })
    }

    /// Names the values of an example: one column each.
    #[must_use]
    pub(super) fn with_columns(mut self, names: Vec<String>) -> Self {
        self.columns = Some(names);
        self
    }

    /// The label of every example, in file order.
    #[must_use]
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The inputs of every example, in file order.
    #[must_use]
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }
}

impl std::fmt::Debug for Examples {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Examples")
            .field("len", &self.labels.len())
            .field("input_shape", &self.input_shape)
            .field("classes", &self.classes)
            .finish_non_exhaustive()
    }
}

impl Shard for Examples {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn input_shape(&self) -> &[u64] {
        &self.input_shape
    }

    fn classes(&self) -> u32 {
        self.classes
    }

    fn columns(&self) -> Option<&[String]> {
        self.columns.as_deref()
    }

    fn read(&self, indices: &[usize], inputs: &mut Vec<f32>, labels: &mut Vec<u32>) {
        inputs.clear();
        labels.clear();
        inputs.reserve(indices.len() * self.values_per_example);
        for &index in indices {
            labels.push(self.labels[index]);
            let range = index * self.values_per_example..(index + 1) * self.values_per_example;
            match &self.inputs {
                Inputs::Bytes(values) => inputs.extend(values[range].iter().map(|byte| f32::from(*byte))),
                Inputs::Floats(values) => inputs.extend_from_slice(&values[range]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_in_the_order_asked_for_and_may_repeat() {
        let examples = Examples::new(Inputs::Bytes(vec![1, 2, 3, 4, 5, 255]), vec![7, 0, 2], vec![2]).expect("fits");
        let (mut inputs, mut labels) = (vec![9.0], vec![9]);
        examples.read(&[2, 0, 2], &mut inputs, &mut labels);
        assert_eq!(inputs, [5.0, 255.0, 1.0, 2.0, 5.0, 255.0]);
        assert_eq!(labels, [2, 7, 2]);
        assert_eq!((examples.len(), examples.classes()), (3, 8));
    }

    #[test]
    fn inputs_that_do_not_fit_the_labels_are_refused() {
        assert!(Examples::new(Inputs::Floats(vec![0.0; 5]), vec![0, 1], vec![2]).is_none());
        assert!(Examples::new(Inputs::Floats(vec![]), vec![0], vec![0]).is_none());
        assert!(Examples::new(Inputs::Bytes(vec![0]), vec![u32::MAX], vec![1]).is_none());
    }
}
