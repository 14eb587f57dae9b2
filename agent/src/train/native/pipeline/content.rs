//! What a round comes to, made where it was trained and put together by its owner: a layer at a time, so that neither the cut nor who
//! computes a part changes a bit of it.
//!
//! ```text
//!  member:  trained - base, left out before  ─► encode ─► payload, left out now    of each layer of a part
//!  owner:   payloads of all layers ─► one payload in segments;   left out now ─► its ledger
//! ```

use std::ops::Range;

use anabranch_common::codec::feedback::Feedback;
use anabranch_common::codec::segments::{self, Segment};
use anabranch_common::codec::{self, Codec, CodecSpec, Delta, EncodeError};
use anabranch_common::journal::Plan;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::{Layer, ModelSpec, TensorPolicy, UploadSpec};
use anabranch_common::wire::pod::LayerFigures;

use super::error::{ParcelError, PipelineError};
use super::training::Training;
use crate::pod::{ContentSizes, LayerContent};
use crate::train::TrainError;

/// How the content of a round is encoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoding {
    /// With what: every layer by itself.
    pub codec: CodecSpec,
    /// Tensors with other codecs.
    pub policy: TensorPolicy,
    /// What the difference is encoded with.
    pub held: Held,
    /// Whether the product of what is sent with the base is asked for.
    pub base_dot: bool,
}

/// What is held of a part from round to round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Held {
    /// What compression left out before (EF14), which is added with this decay.
    LeftOut {
        /// Beta.
        decay: f32,
    },
    /// What the coordinator has of the agent (EF21), which is taken off.
    Memory,
}

/// What a round of a pod comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Contribution {
    /// The payload, of [`segments`].
    pub payload: Vec<u8>,
    /// The layers with content, in their order, and how many bytes each has at the end of the payload.
    pub layers: Vec<(u32, u64)>,
    /// What it leaves out, one value a parameter of the model; empty where nothing is kept.
    pub left_out: Vec<f32>,
    /// Product with the base, if it was asked for and is finite.
    pub base_dot: Option<f64>,
    /// Norm of what is left out over the norm of what training has changed, if that is not 0.
    pub residual_ratio: Option<f32>,
}

/// A layer with tensors of its own.
#[derive(Debug, Clone)]
pub(super) struct LayerPlace {
    /// Its number in the model.
    pub(super) layer: u32,
    /// Its range of the model's flat vector.
    pub(super) range: Range<usize>,
    /// Its tensors.
    pub(super) manifest: ModelManifest,
}

/// Returns the layers of a model that have tensors of their own, in their order.
pub(super) fn places(layers: &[Layer], manifest: &ModelManifest) -> Vec<LayerPlace> {
    let ranges: Vec<Range<usize>> = manifest.ranges().map(|(_, range)| range).collect();
    let place = |(layer, of): (u32, &Layer)| {
        let tensors = of.tensors.clone();
        let (first, last) = (ranges.get(tensors.start)?, ranges.get(tensors.end.checked_sub(1)?)?);
        let range = first.start..last.end;
        let manifest = manifest.slice(tensors)?;
        Some(LayerPlace { layer, range, manifest })
    };
    (0..).zip(layers).filter_map(place).collect()
}

/// Returns the same of a custom model, whose layers are modules of so many parameters; none if they are no whole tensors.
pub(super) fn module_places(modules: &[usize], manifest: &ModelManifest) -> Option<Vec<LayerPlace>> {
    let ends: Vec<usize> = manifest.ranges().map(|(_, range)| range.end).collect();
    let (mut places, mut start, mut first) = (Vec::new(), 0, 0);
    for (layer, params) in (0..).zip(modules) {
        let range = start..start + params;
        let last = first + ends[first..].iter().take_while(|end| **end <= range.end).count();
        if first == last && range.is_empty() {
            continue;
        }
        let slice = manifest.slice(first..last).filter(|slice| slice.params() == range.len())?;
        (start, first) = (range.end, last);
        places.push(LayerPlace { layer, range, manifest: slice });
    }
    (first == ends.len()).then_some(places)
}

/// Returns how long what the layers of a model come to can be. `manifest`: the tensors of a custom model.
///
/// # Errors
/// It is no model, or its modules do not consist of whole tensors.
pub fn sizes(model: &ModelSpec, manifest: Option<&ModelManifest>) -> Result<ContentSizes, PipelineError> {
    let native = model.layers().map_err(TrainError::from)?;
    let places = match (&native, manifest) {
        (Some(layers), _) => places(&layers.layers, &layers.manifest),
        (None, Some(manifest)) => {
            let modules = model.modules.iter().map(|module| usize::try_from(module.parameters).unwrap_or(usize::MAX));
            let places = module_places(&modules.collect::<Vec<_>>(), manifest);
            places.ok_or(PipelineError::Round("model.modules does not cut the trainer's tensors"))?
        }
        (None, None) => Vec::new(),
    };
    Ok(ContentSizes::of(places.iter().map(|place| &place.manifest)))
}

/// Encodes what a layer was trained to.
fn encode(
    place: &LayerPlace,
    [base, trained]: [&[f32]; 2],
    held: &[f32],
    encoding: &Encoding,
) -> Result<LayerContent, EncodeError> {
    let delta: Vec<f32> = trained.iter().zip(base).map(|(trained, base)| trained - base).collect();
    let codec = encoding.codec(place);
    let (payload, left_out) = match encoding.held {
        Held::LeftOut { decay } => {
            let mut feedback = Feedback::restore(decay, held.to_vec());
            let payload = feedback.encode(&*codec, &place.manifest, &delta)?;
            (payload, feedback.into_left_out())
        }
        Held::Memory => {
            let mut left = delta.clone();
            left.iter_mut().zip(held).for_each(|(left, held)| *left -= held);
            (codec.encode(&place.manifest, &left)?, Vec::new())
        }
    };
    let base_dot = if encoding.base_dot { product(base, &decoded(&*codec, place, &payload)) } else { 0.0 };
    let figures = LayerFigures { base_dot, delta_square: square(&delta), left_out_square: square(&left_out) };
    Ok(LayerContent { layer: place.layer, payload, left_out, figures })
}

/// What the layers of a part come to, one after the other, once the part has trained.
#[derive(Debug)]
pub(super) struct Contents {
    encoding: Encoding,
    places: std::vec::IntoIter<LayerPlace>,
    held: Vec<f32>,
    /// The weights at the beginning and at the end, once the part is through.
    weights: Option<[Vec<f32>; 2]>,
    /// Whether the owner of the round computes the part.
    is_own: bool,
}

impl Encoding {
    /// Returns how every member of a pod encodes a round with this plan.
    #[must_use]
    pub fn of(plan: &Plan, upload: &UploadSpec) -> Self {
        let held = match plan.memory {
            Some(_) => Held::Memory,
            None => Held::LeftOut { decay: upload.feedback_decay },
        };
        Self { codec: plan.codec, policy: upload.policy.clone(), held, base_dot: plan.base_dot }
    }

    fn codec(&self, place: &LayerPlace) -> Box<dyn Codec> {
        self.policy.encoder(self.codec, &place.manifest)
    }

    /// Checks the length of what is left out of a layer. Without it the owner would forget what it held of the layer. A codec that
    /// leaves nothing out may say so with no values at all.
    fn check_left_out(&self, place: &LayerPlace, found: usize) -> Result<(), ParcelError> {
        let is_kept = match self.held {
            Held::LeftOut { decay } => Feedback::new(decay).is_on(),
            Held::Memory => false,
        };
        let expected = if is_kept { place.range.len() } else { 0 };
        if found == expected || found == 0 && self.codec(place).lossless() {
            return Ok(());
        }
        Err(ParcelError::Length { what: "what is left out of a layer", found, expected })
    }
}

impl Contents {
    /// Of the part that has `own` of the model's flat vector.
    pub(super) fn new(places: &[LayerPlace], own: &Range<usize>, encoding: Encoding, is_own: bool) -> Self {
        let here = places.iter().filter(|place| own.contains(&place.range.start));
        let within = |place: &LayerPlace| {
            let range = place.range.start - own.start..place.range.end - own.start;
            LayerPlace { range, ..place.clone() }
        };
        let places: Vec<LayerPlace> = here.map(within).collect();
        Self { encoding, places: places.into_iter(), held: Vec::new(), weights: None, is_own }
    }

    /// Takes what is held of the part; nothing: an empty vector.
    pub(super) fn hold(&mut self, held: Vec<f32>) {
        self.held = held;
    }

    /// Returns whether all of them were made.
    pub(super) fn is_through(&self) -> bool {
        self.places.len() == 0
    }

    /// Returns the next one. `training` is through. Where training has led to values that are not finite a helper says so to the owner,
    /// who knows what to do about it.
    ///
    /// # Errors
    /// The same, at the owner.
    pub(super) fn next(&mut self, training: &mut Training<'_>) -> Result<Option<LayerContent>, EncodeError> {
        let Some(place) = self.places.next() else { return Ok(None) };
        let [base, trained] = self.weights.get_or_insert_with(|| training.finish());
        let held = self.held.get(place.range.clone()).unwrap_or_default();
        let weights = [&base[place.range.clone()], &trained[place.range.clone()]];
        let content = match encode(&place, weights, held, &self.encoding) {
            Err(EncodeError::NonFinite(_)) if !self.is_own => not_finite(place.layer),
            encoded => encoded?,
        };
        if self.is_through() {
            (self.weights, self.held) = (None, Vec::new());
        }
        Ok(Some(content))
    }
}

/// What a layer comes to that cannot be encoded.
fn not_finite(layer: u32) -> LayerContent {
    let figures = LayerFigures { delta_square: f64::NAN, ..LayerFigures::default() };
    LayerContent { layer, payload: Vec::new(), left_out: Vec::new(), figures }
}

fn decoded(codec: &dyn Codec, place: &LayerPlace, payload: &[u8]) -> Delta {
    codec.decode(&place.manifest, payload).expect("what was encoded here decodes")
}

/// In index order, in f64: the same bits everywhere.
fn product(base: &[f32], content: &Delta) -> f64 {
    let sum = |sum: f64, (base, value): (&f32, &f32)| sum + f64::from(*base) * f64::from(*value);
    match content {
        Delta::Dense(values) => base.iter().zip(values).fold(0.0, sum),
        Delta::Sparse { indices, values, .. } => {
            let at = indices.iter().filter_map(|index| base.get(*index as usize));
            at.zip(values).fold(0.0, sum)
        }
    }
}

fn square(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum()
}

/// The contents of layers as they arrive, at the owner of the round.
#[derive(Debug)]
pub(super) struct Assembly {
    encoding: Encoding,
    places: Vec<LayerPlace>,
    payloads: Vec<Option<Vec<u8>>>,
    left_out: Vec<f32>,
    figures: Vec<LayerFigures>,
}

impl Assembly {
    /// Nothing has arrived.
    pub(super) fn new(places: Vec<LayerPlace>, encoding: Encoding) -> Self {
        let (payloads, figures) = (vec![None; places.len()], vec![LayerFigures::default(); places.len()]);
        Self { encoding, places, payloads, left_out: Vec::new(), figures }
    }

    /// Takes the content of a layer of the part that has this range of the model.
    ///
    /// # Errors
    /// It is not the next one of the part, or not what a member makes. Nothing has changed.
    pub(super) fn take(&mut self, part: &Range<usize>, content: LayerContent) -> Result<(), ParcelError> {
        let LayerContent { layer, payload, left_out, figures } = content;
        let next = self.missing(part).next().filter(|at| self.places[*at].layer == layer);
        let at = next.ok_or(ParcelError::Unexpected { what: "a layer's content" })?;
        let place = &self.places[at];
        self.encoding.check_left_out(place, left_out.len())?;
        let LayerFigures { base_dot, delta_square, left_out_square } = figures;
        let sound = self
            .encoding
            .codec(place)
            .decode(&place.manifest, &payload)
            .map_err(|error| ParcelError::Content { layer, problem: error.to_string() })?
            .is_finite();
        let sound =
            sound && codec::is_finite(&left_out) && [delta_square, left_out_square].iter().all(|sum| *sum >= 0.0);
        if !sound || base_dot.is_nan() {
            return Err(ParcelError::Content { layer, problem: "it is not finite".to_owned() });
        }
        if !left_out.is_empty() {
            let params = self.places.last().map_or(0, |place| place.range.end);
            self.left_out.resize(params, 0.0);
            self.left_out[place.range.clone()].copy_from_slice(&left_out);
        }
        (self.payloads[at], self.figures[at]) = (Some(payload), figures);
        Ok(())
    }

    /// Returns whether a layer of the part that has this range of the model has not arrived.
    pub(super) fn is_without(&self, part: &Range<usize>) -> bool {
        self.missing(part).next().is_some()
    }

    /// Returns whether every layer has arrived.
    pub(super) fn is_whole(&self) -> bool {
        self.payloads.iter().all(Option::is_some)
    }

    fn missing<'a>(&'a self, part: &'a Range<usize>) -> impl Iterator<Item = usize> + 'a {
        let places = self.places.iter().zip(&self.payloads).enumerate();
        let missing = places.filter(|(_, (place, payload))| part.contains(&place.range.start) && payload.is_none());
        missing.map(|(at, _)| at)
    }

    /// Returns what the round comes to, once every layer has arrived.
    #[expect(clippy::cast_possible_truncation, reason = "a ratio that is told")]
    pub(super) fn finish(self) -> Contribution {
        let Self { encoding, places, payloads, left_out, figures } = self;
        let payloads: Vec<Vec<u8>> = payloads.into_iter().flatten().collect();
        let segments = places.iter().zip(&payloads).flat_map(|(place, payload)| segments_of(&encoding, place, payload));
        let segments: Vec<(Segment, &[u8])> = segments.collect();
        let layer =
            |(place, payload): (&LayerPlace, &Vec<u8>)| (place.layer, body(&encoding, place, payload).len() as u64);
        let layers = places.iter().zip(&payloads).map(layer).collect();
        let mut payload = segments::header(&segments.iter().map(|(segment, _)| *segment).collect::<Vec<_>>());
        payload.reserve_exact(segments.iter().map(|(_, part)| part.len()).sum());
        segments.iter().for_each(|(_, part)| payload.extend_from_slice(part));
        let sum = |of: fn(&LayerFigures) -> f64| figures.iter().map(of).sum::<f64>();
        let base_dot = Some(sum(|of| of.base_dot)).filter(|dot| encoding.base_dot && dot.is_finite());
        let ratio = (sum(|of| of.left_out_square).sqrt() / sum(|of| of.delta_square).sqrt()) as f32;
        let residual_ratio = Some(ratio).filter(|ratio| ratio.is_finite());
        Contribution { payload, layers, left_out, base_dot, residual_ratio }
    }
}

/// What of a layer's content is in the payload of the round: all of it but for the header of segments of its own.
pub(super) fn body<'a>(encoding: &Encoding, place: &LayerPlace, payload: &'a [u8]) -> &'a [u8] {
    let bytes: usize = segments_of(encoding, place, payload).iter().map(|(_, part)| part.len()).sum();
    &payload[payload.len() - bytes..]
}

/// The segments of a layer's content. One whose tensors have several codecs has them itself.
fn segments_of<'a>(encoding: &Encoding, place: &LayerPlace, payload: &'a [u8]) -> Vec<(Segment, &'a [u8])> {
    let codec = encoding.codec(place).id();
    if codec != segments::ID {
        let (tensors, bytes) = (place.manifest.tensors().len(), payload.len() as u64);
        return vec![(Segment { tensors, codec, bytes }, payload)];
    }
    let parts = segments::split(&place.manifest, payload).expect("it was decoded when it arrived");
    let segment = |part: segments::Part<'a>| {
        let (tensors, bytes) = (part.tensors.len(), part.payload.len() as u64);
        (Segment { tensors, codec: part.codec, bytes }, part.payload)
    };
    parts.into_iter().map(segment).collect()
}

/// What a round that was computed in one process comes to.
///
/// # Errors
/// Training has led to values that are not finite.
pub(super) fn whole(
    places: &[LayerPlace],
    [base, end]: [&[f32]; 2],
    held: &[f32],
    encoding: &Encoding,
) -> Result<Contribution, EncodeError> {
    let all = 0..places.last().map_or(0, |place| place.range.end);
    let mut assembly = Assembly::new(places.to_vec(), encoding.clone());
    for place in places {
        let range = place.range.clone();
        let held = held.get(range.clone()).unwrap_or_default();
        let content = encode(place, [&base[range.clone()], &end[range]], held, encoding)?;
        assembly.take(&all, content).expect("it was encoded here, in its turn");
    }
    Ok(assembly.finish())
}
