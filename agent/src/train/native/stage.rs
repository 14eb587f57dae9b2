//! Consecutive layers of a model, and the part of its flat vector that they compute with. A whole model is one stage.

use std::ops::Range;

use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::{GPT_TOKENS, Gpt, Layer, LayerKind};

use super::gpt::to_usize;

/// Consecutive layers.
///
/// A gradient of a stage is the gradient of its own range, followed by that of its tied tensor where it has one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stage {
    /// The layers, in their order.
    pub(super) layers: Vec<Layer>,
    /// Its own range of the model's flat vector.
    pub(super) own: Range<usize>,
    /// The matrix of each of its own tensors: range in the flat vector of the stage, and rows.
    matrices: Vec<(Range<usize>, usize)>,
    /// The tensor of an earlier layer, in this stage or before it, that its last layer uses too.
    pub(super) tied: Option<Tied>,
    /// Of a stage of modules, which has no layers here: values of its output for one example.
    outputs: usize,
}

/// A tensor that a layer shares with an earlier one. The gradient of each use is summed over the micro-batches of a step first;
/// then the sum of this use is added to that of the earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tied {
    /// Its range of the model's flat vector, where it belongs to the earlier layer.
    pub(super) range: Range<usize>,
    /// Rows of its matrix.
    rows: usize,
    /// Which of the stage's own tensors it is, if the earlier layer is in the same stage.
    pub(super) here: Option<usize>,
}

impl Stage {
    /// Returns the stage of `layers` of a model.
    pub(super) fn new(all: &[Layer], layers: Range<usize>, manifest: &ModelManifest) -> Self {
        let all_matrices: Vec<(Range<usize>, usize)> = manifest
            .ranges()
            .map(|(tensor, range)| {
                let rows = tensor.shape.first().and_then(|rows| usize::try_from(*rows).ok()).unwrap_or(range.len());
                (range, rows)
            })
            .collect();
        let layers = all[layers].to_vec();
        let first = layers.first().map_or(0, |layer| layer.tensors.start);
        let last = layers.last().map_or(first, |layer| layer.tensors.end);
        let ranges = &all_matrices[first..last];
        let start = ranges.first().map_or(0, |(range, _)| range.start);
        let end = ranges.last().map_or(0, |(range, _)| range.end);
        let matrices = ranges.iter().map(|(range, rows)| (range.start - start..range.end - start, *rows)).collect();
        let tied = layers.iter().find_map(|layer| layer.tied).map(|index| {
            let (range, rows) = all_matrices[index].clone();
            Tied { range, rows, here: index.checked_sub(first).filter(|here| *here < last - first) }
        });
        Self { layers, own: start..end, matrices, tied, outputs: 0 }
    }

    /// Returns a stage of the modules of a custom model, which another process computes: its own range of the model's flat vector, and
    /// the values of its output for one example.
    pub(super) fn of_modules(own: Range<usize>, outputs: usize) -> Self {
        Self { layers: Vec::new(), own, matrices: Vec::new(), tied: None, outputs }
    }

    /// Shapes of its matrices with their ranges of the stage's own flat vector, in order.
    pub(super) fn matrices(&self) -> impl Iterator<Item = (Range<usize>, [usize; 2])> + '_ {
        self.matrices.iter().map(|(range, rows)| (range.clone(), [*rows, range.len() / rows]))
    }

    /// Parameters of its own.
    pub(super) fn params(&self) -> usize {
        self.own.len()
    }

    /// Whether its output is the logits of a gpt, which has an example a row.
    pub(super) fn gives_rows(&self) -> bool {
        self.layers.last().is_some_and(|layer| matches!(layer.kind, LayerKind::Head(_)))
    }

    /// Returns the range of the model of a tensor that it uses and another stage owns.
    pub(super) fn borrowed(&self) -> Option<&Range<usize>> {
        self.tied.as_ref().filter(|tied| tied.here.is_none()).map(|tied| &tied.range)
    }

    /// Returns rows and columns of its output for so many examples.
    pub(super) fn output_shape(&self, examples: usize) -> [usize; 2] {
        let tokens = |gpt: &Gpt| examples * to_usize(gpt.context);
        match self.layers.last().map(|layer| &layer.kind) {
            Some(LayerKind::Convolution { image: [height, width], out_channels, .. }) => {
                [examples, (height / 2) * (width / 2) * out_channels]
            }
            Some(LayerKind::Dense { outputs, .. }) => [*outputs, examples],
            Some(LayerKind::Embedding(gpt) | LayerKind::Attention(gpt) | LayerKind::FeedForward(gpt)) => {
                [tokens(gpt), to_usize(gpt.width)]
            }
            Some(LayerKind::Head(gpt)) => [tokens(gpt), to_usize(GPT_TOKENS)],
            None => [examples, self.outputs],
        }
    }

    /// Adds the gradient of the tied tensor, at the end of `gradient`, to that of the earlier use, and cuts it off. Of a stage that
    /// has both uses, such as a whole model.
    pub(super) fn tie(&self, gradient: &mut Vec<f32>) {
        let Some(range) = self.tied.as_ref().map(|tied| &tied.range) else { return };
        let (own, of_tied) = gradient.split_at_mut(self.own.len());
        add_to(&mut own[range.start - self.own.start..range.end - self.own.start], of_tied);
        gradient.truncate(self.own.len());
    }
}

impl Tied {
    /// Shape of its matrix.
    pub(super) fn shape(&self) -> [usize; 2] {
        [self.rows, self.range.len() / self.rows]
    }
}

/// Adds the gradient of a tied tensor's later use to that of the earlier one.
pub(super) fn add_to(earlier: &mut [f32], later: &[f32]) {
    earlier.iter_mut().zip(later).for_each(|(sum, slope)| *sum += slope);
}

#[cfg(test)]
mod tests {
    use anabranch_common::spec::{ModelKind, ModelSpec};

    use super::*;

    #[test]
    fn stages_cover_the_flat_vector_and_know_what_they_share() {
        let (context, blocks, heads, width) = (4, 2, 1, 2);
        let spec = ModelSpec { kind: ModelKind::Gpt, context, layers: blocks, heads, width, ..ModelSpec::default() };
        let model = spec.layers().expect("valid").expect("native");
        let count = model.layers.len();
        let params = model.manifest.params();
        let whole = Stage::new(&model.layers, 0..count, &model.manifest);
        assert_eq!(whole.own, 0..params);
        let tied = whole.tied.as_ref().expect("the head is the token embedding");
        assert_eq!((tied.range.clone(), tied.shape(), tied.here), (0..512, [256, 2], Some(0)));
        for cut in 1..count {
            let [first, second] = [0..cut, cut..count].map(|layers| Stage::new(&model.layers, layers, &model.manifest));
            assert_eq!((first.own.start, first.own.end, second.own.end), (0, second.own.start, params));
            assert!(first.tied.is_none() && second.tied.as_ref().is_some_and(|tied| tied.here.is_none()));
            let elements: usize = second.matrices().map(|(_, [rows, columns])| rows * columns).sum();
            assert_eq!(elements, second.params());
            assert!(!first.gives_rows() && second.gives_rows());
        }
    }

    #[test]
    fn the_gradients_of_a_tied_tensor_are_added() {
        let spec =
            ModelSpec { kind: ModelKind::Gpt, context: 1, layers: 1, heads: 1, width: 1, ..ModelSpec::default() };
        let model = spec.layers().expect("valid").expect("native");
        let whole = Stage::new(&model.layers, 0..model.layers.len(), &model.manifest);
        let mut gradient = vec![1.0; whole.params() + 256];
        gradient[whole.params()] = 5.0;
        whole.tie(&mut gradient);
        assert_eq!((gradient.len(), gradient[0], gradient[1], gradient[256]), (whole.params(), 6.0, 2.0, 1.0));
    }
}
