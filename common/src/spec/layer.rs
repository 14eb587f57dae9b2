//! One layer of a native model: what it computes, which tensors it uses, and what that costs. The layers of a model in their order
//! are its layer table, along which a pod cuts it into stages.

use std::ops::Range;

use super::gpt::{GPT_TOKENS, Gpt};

/// Bytes of a value.
const VALUE: u64 = 4;
/// Values of a 3x3 kernel.
const TAPS: u64 = 9;

/// A layer. Its tensors are consecutive in the manifest, and those of all layers cover it in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Name, by which `status` and errors call it: what the names of its tensors begin with.
    pub name: String,
    /// What it computes.
    pub kind: LayerKind,
    /// Its own tensors, by their index in the manifest.
    pub tensors: Range<usize>,
    /// Parameters of its own.
    pub params: u64,
    /// A tensor of an earlier layer that it uses too.
    pub tied: Option<usize>,
}

/// What a layer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// A 3x3 convolution with padding 1, 2x2 max-pooling, and ReLU.
    Convolution {
        /// Height and width of an input image; the pooling halves both.
        image: [usize; 2],
        /// Channels of its input.
        in_channels: usize,
        /// Channels of its output.
        out_channels: usize,
        /// How its input lies.
        input: LayerInput,
    },
    /// A dense layer.
    Dense {
        /// Width of its input.
        inputs: usize,
        /// Width of its output.
        outputs: usize,
        /// Whether ReLU follows.
        relu: bool,
        /// How its input lies.
        input: LayerInput,
    },
    /// Token and position embeddings of a gpt, which turn windows of bytes into `[tokens, width]`.
    Embedding(Gpt),
    /// Causal attention of a gpt with the layer norm before it, added to its input.
    Attention(Gpt),
    /// The two linear layers of a block of a gpt, with GELU between them and the layer norm before them, added to their input.
    FeedForward(Gpt),
    /// The last layer norm of a gpt and its logits `[tokens, 256]`, by the token embedding.
    Head(Gpt),
}

/// How the input of a layer lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerInput {
    /// Examples as a shard gives them, one a row.
    Examples,
    /// Images `[height, width, channels]` of so many pixels, one a row.
    Maps {
        /// Height times width.
        pixels: usize,
    },
    /// A feature a row, an example a column.
    Features,
}

/// What a layer costs for one example; of a gpt an example is a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerCost {
    /// Multiplications and additions of its matrix products (of an embedding: its additions). Its backward pass has about twice as
    /// many.
    pub forward_flops: u64,
    /// Bytes that it keeps until its backward pass, as the memory model of the native trainer counts them.
    pub activation_bytes: u64,
    /// Bytes of its output: what crosses a cut behind it, forward and as a gradient backward.
    pub output_bytes: u64,
}

impl Layer {
    /// Returns what the layer costs for one example.
    #[must_use]
    pub fn cost(&self) -> LayerCost {
        let (flops, kept, output) = match self.kind {
            LayerKind::Convolution { image: [height, width], in_channels, out_channels, .. } => {
                let [area, inputs, outputs] = [height.saturating_mul(width), in_channels, out_channels].map(to_u64);
                let pooled = (area / 4).saturating_mul(outputs);
                let flops = product(&[2, TAPS, area, inputs, outputs]);
                // What goes in, and what comes out of the pooling. Patches and maps live for a few images at a time, and
                // gradients take the place of what they are gradients of.
                (flops, area.saturating_mul(inputs).saturating_add(pooled), pooled)
            }
            LayerKind::Dense { inputs, outputs, input, .. } => {
                let [inputs, outputs] = [inputs, outputs].map(to_u64);
                // What goes into ReLU and what comes out of it, or their gradients. Of an input that is not a layer's: as read, and
                // transposed.
                let read = if input == LayerInput::Features { 0 } else { 2 * inputs };
                (product(&[2, inputs, outputs]), read + 2 * outputs, outputs)
            }
            LayerKind::Embedding(gpt) => {
                let row = u64::from(gpt.width);
                of_window(gpt, row, row, row)
            }
            // Of the fourteen rows of a block six, and of each head the row of its attention as scores and shares.
            LayerKind::Attention(gpt) => {
                let [context, heads, width] = [gpt.context, gpt.heads, gpt.width].map(u64::from);
                let flops = 8 * width * width + 4 * context * width;
                of_window(gpt, flops, 6 * width + 2 * heads * context, width)
            }
            LayerKind::FeedForward(gpt) => {
                let width = u64::from(gpt.width);
                of_window(gpt, 16 * width * width, 8 * width, width)
            }
            // The logits with their gradients.
            LayerKind::Head(gpt) => {
                let [width, tokens] = [gpt.width, GPT_TOKENS].map(u64::from);
                of_window(gpt, 2 * width * tokens, 4 * tokens + 3 * width, tokens)
            }
        };
        LayerCost {
            forward_flops: flops,
            activation_bytes: kept.saturating_mul(VALUE),
            output_bytes: output.saturating_mul(VALUE),
        }
    }
}

/// The figures of a window from those of a token.
fn of_window(gpt: Gpt, flops: u64, kept: u64, output: u64) -> (u64, u64, u64) {
    let context = u64::from(gpt.context);
    (context * flops, context * kept, context * output)
}

fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |product, factor| product.saturating_mul(*factor))
}

fn to_u64(extent: usize) -> u64 {
    extent as u64
}

#[cfg(test)]
mod tests {
    use super::super::{ModelKind, ModelSpec};
    use super::*;

    fn layers(spec: &ModelSpec) -> Vec<Layer> {
        spec.layers().expect("valid").expect("native").layers
    }

    #[test]
    fn the_costs_of_a_dense_layer_are_counted_by_hand() {
        let (input, hidden) = (vec![784], vec![128]);
        let mlp = layers(&ModelSpec { kind: ModelKind::Mlp, input, hidden, classes: 10, ..ModelSpec::default() });
        let rows: Vec<_> = mlp.iter().map(|layer| (layer.name.as_str(), layer.params, layer.cost())).collect();
        let cost = |forward_flops, values, outputs: u64| LayerCost {
            forward_flops,
            activation_bytes: VALUE * values,
            output_bytes: VALUE * outputs,
        };
        let first = cost(2 * 784 * 128, 2 * 784 + 2 * 128, 128);
        assert_eq!(rows, [("fc1", 784 * 128 + 128, first), ("fc2", 1290, cost(2 * 1280, 20, 10))]);
    }

    #[test]
    fn the_costs_of_a_convolution_are_counted_by_hand() {
        let (input, hidden) = (vec![3, 8, 4], vec![2, 5, 7]);
        let cnn = layers(&ModelSpec { kind: ModelKind::Cnn, input, hidden, classes: 10, ..ModelSpec::default() });
        assert_eq!(cnn.iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>(), ["conv1", "conv2", "fc1", "fc2"]);
        let first = cnn[0].cost();
        assert_eq!(first.forward_flops, 2 * 9 * 32 * 3 * 2);
        assert_eq!((first.activation_bytes, first.output_bytes), (VALUE * (32 * 3 + 8 * 2), VALUE * 8 * 2));
        assert!(matches!(cnn[0].kind, LayerKind::Convolution { input: LayerInput::Examples, .. }));
        assert!(matches!(cnn[2].kind, LayerKind::Dense { inputs: 10, input: LayerInput::Maps { pixels: 2 }, .. }));
    }

    /// Whatever the model, its layers cover its tensors once and in order.
    #[test]
    fn the_layers_of_every_model_cover_its_tensors() {
        let image = |kind| ModelSpec { kind, input: vec![1, 28, 28], classes: 10, ..ModelSpec::default() };
        let (context, blocks, heads, width) = (16, 3, 2, 8);
        let gpt = ModelSpec { kind: ModelKind::Gpt, context, layers: blocks, heads, width, ..ModelSpec::default() };
        for (spec, count) in [(image(ModelKind::Mlp), 2), (image(ModelKind::Cnn), 4), (gpt, 2 + 2 * 3)] {
            let model = spec.layers().expect("valid").expect("native");
            assert_eq!(model.layers.len(), count);
            let mut next = 0;
            for layer in &model.layers {
                assert_eq!(layer.tensors.start, next, "{}", layer.name);
                next = layer.tensors.end;
                let tensors = &model.manifest.tensors()[layer.tensors.clone()];
                let params: usize = tensors.iter().filter_map(|tensor| tensor.elements()).sum();
                assert_eq!(params as u64, layer.params, "{}", layer.name);
                assert!(layer.cost().forward_flops > 0, "{}", layer.name);
                assert!(layer.tied.is_none_or(|tied| tied < layer.tensors.start));
            }
            assert_eq!(next, model.manifest.tensors().len());
        }
    }
}
