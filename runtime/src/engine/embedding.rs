//! Embeddings: the hidden states after the last norm, pooled over a text.
//!
//! An [`Embedding`] is one text on its way through a model, as a [`Sequence`](super::sequence::Sequence) is
//! one that is written: it runs nothing, it returns tokens and takes states. [`Session::embed`] runs some
//! texts, as many in a pass as fit.

use std::fmt;
use std::str::FromStr;

use crate::arch::config::Config;
use crate::cpu::head::screen::Needs;
use crate::cpu::session::{BatchToken, Session};
use crate::error::{Error, Result, quoted};
use crate::file::gguf::Gguf;

/// Pooling: what of the hidden states of a text's tokens becomes its embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Each state is an embedding, one for each token.
    None,
    /// The mean of all states, summed in f64 in the order of the tokens.
    Mean,
    /// The state of the first token.
    Cls,
    /// The state of the last token.
    Last,
}

impl Pooling {
    /// All of them, by the number that a file says.
    pub const ALL: [Self; 4] = [Self::None, Self::Mean, Self::Cls, Self::Last];

    /// Reads the pooling that a model was trained with, `{arch}.pooling_type`; `None` where the file says
    /// nothing of it.
    ///
    /// # Errors
    /// [`Error::Model`] for another number than those of [`Pooling::ALL`], such as 4, with which a model
    /// ranks texts.
    pub fn of_model(gguf: &Gguf, config: &Config) -> Result<Option<Self>> {
        let key = format!("{}.pooling_type", config.architecture.name);
        let Some(number) = gguf.get_u32(&key)? else { return Ok(None) };
        let found = Self::ALL.get(number as usize).copied();
        found.map(Some).ok_or_else(|| {
            gguf.key_error(
                &key,
                number,
                "0 for none, 1 for mean, 2 for cls or 3 for last; name another pooling",
            )
        })
    }

    /// Its name: `none`, `mean`, `cls` or `last`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Last => "last",
        }
    }
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Pooling {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|pooling| pooling.name() == name);
        found.ok_or_else(|| Error::usage("pooling", quoted(name), "none, mean, cls or last"))
    }
}

/// Normalisation of embeddings, by the numbers of llama-embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalisation {
    /// -1: none.
    None,
    /// 0: the largest magnitude becomes 32760, as for 16-bit integers.
    Int16,
    /// p, 1 or more: the p-norm becomes 1; 2 is Euclid's.
    Norm(u16),
}

impl Normalisation {
    /// The Euclidean norm becomes 1.
    pub const EUCLIDEAN: Self = Self::Norm(2);

    /// Returns the normalisation of a number; `None` for one that is below -1 or above 65535.
    #[must_use]
    pub fn of_number(number: i64) -> Option<Self> {
        match number {
            -1 => Some(Self::None),
            0 => Some(Self::Int16),
            _ => u16::try_from(number).ok().map(Self::Norm),
        }
    }

    /// Normalises an embedding; one of zeros stays as it is. Sums are f64, in order.
    pub fn apply(self, values: &mut [f32]) {
        let magnitudes = values.iter().map(|value| f64::from(value.abs()));
        let size = match self {
            Self::None => return,
            Self::Int16 => magnitudes.fold(0.0, f64::max) / 32760.0,
            Self::Norm(1) => magnitudes.sum(),
            Self::Norm(2) => magnitudes.map(|value| value * value).sum::<f64>().sqrt(),
            // Relative to the largest, so that no power overflows.
            Self::Norm(p) => {
                let largest = magnitudes.clone().fold(0.0, f64::max);
                let sum: f64 = magnitudes.map(|value| (value / largest).powi(p.into())).sum();
                if largest > 0.0 { largest * sum.powf(1.0 / f64::from(p)) } else { 0.0 }
            }
        };
        if size > 0.0 {
            values.iter_mut().for_each(|value| *value = (f64::from(*value) / size) as f32);
        }
    }
}

/// One text, of which an embedding is made.
#[derive(Clone, Debug)]
pub struct Embedding {
    ids: Vec<u32>,
    pooling: Pooling,
    /// Tokens that have been through the model, and those of the present pass.
    done: usize,
    taken: usize,
    /// Hidden states that are kept, one after the other.
    states: Vec<f32>,
    /// Sum of all states, with [`Pooling::Mean`].
    sum: Vec<f64>,
}

impl Embedding {
    /// Makes the embedding of a text of these tokens, at least one.
    /// [`Tokenizer::whole`](crate::Tokenizer::whole) makes them.
    ///
    /// # Errors
    /// [`Error::Usage`] for no tokens.
    pub fn new(ids: Vec<u32>, pooling: Pooling) -> Result<Self> {
        if ids.is_empty() {
            return Err(Error::usage("text", "no tokens", "at least one"));
        }
        Ok(Self { ids, pooling, done: 0, taken: 0, states: Vec::new(), sum: Vec::new() })
    }

    /// Number of tokens of the text.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// False: a text has a token at least.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Tokens that are still to go through the model.
    #[must_use]
    pub fn left(&self) -> usize {
        self.ids.len() - self.done
    }

    /// Returns the tokens that are to go through the model next, at most `most` of them and at least one,
    /// in that sequence of a session, behind those that it was given before.
    pub fn tokens(
        &mut self,
        sequence: usize,
        most: usize,
    ) -> impl Iterator<Item = BatchToken<'static>> {
        self.taken = most.clamp(1, self.left().max(1)).min(self.left());
        let present = self.done..self.done + self.taken;
        present.map(move |place| BatchToken {
            sequence,
            id: self.ids[place],
            needs: self.reads(place).then_some(&Needs::Hidden),
        })
    }

    /// True if the state of a token is part of the embedding.
    fn reads(&self, place: usize) -> bool {
        match self.pooling {
            Pooling::None | Pooling::Mean => true,
            Pooling::Cls => place == 0,
            Pooling::Last => place + 1 == self.ids.len(),
        }
    }

    /// Takes the states of the tokens that were returned last: `hidden(row)` is that of the `row`-th of
    /// them that needs any. Returns the number of rows taken.
    pub fn accept<'s>(&mut self, hidden: impl Fn(usize) -> &'s [f32]) -> usize {
        let present = self.done..self.done + self.taken;
        let rows = present.filter(|&place| self.reads(place)).count();
        (0..rows).for_each(|row| self.add(hidden(row)));
        self.end_pass();
        rows
    }

    fn end_pass(&mut self) {
        self.done += std::mem::take(&mut self.taken);
    }

    fn add(&mut self, state: &[f32]) {
        if self.pooling != Pooling::Mean {
            self.states.extend(state);
            return;
        }
        self.sum.resize(state.len(), 0.0);
        self.sum.iter_mut().zip(state).for_each(|(sum, value)| *sum += f64::from(*value));
    }

    /// Returns the embeddings of the text, once all of it has been through the model: one, or with
    /// [`Pooling::None`] one for each token.
    #[must_use]
    pub fn finish(self, normalisation: Normalisation) -> Vec<Vec<f32>> {
        let tokens = self.ids.len();
        let mut all: Vec<Vec<f32>> = match self.pooling {
            Pooling::Mean => {
                let mean = self.sum.iter().map(|sum| (sum / tokens as f64) as f32);
                vec![mean.collect()]
            }
            Pooling::None => {
                let width = (self.states.len() / tokens).max(1);
                self.states.chunks(width).map(<[f32]>::to_vec).collect()
            }
            Pooling::Cls | Pooling::Last => vec![self.states],
        };
        all.iter_mut().for_each(|embedding| normalisation.apply(embedding));
        all
    }
}

impl Session {
    /// Makes the embeddings of some texts: `each(text, embedding)` gets that of each, in order, once it has
    /// been through the model. Several go through it together, in a sequence of the session each, as far as
    /// sequences and a batch suffice; an embedding does not depend on the others. All sequences are emptied
    /// first, and hold some of the texts afterwards.
    ///
    /// # Errors
    /// [`Error::Usage`] for a text that has no tokens, is longer than the context or holds a token that does
    /// not exist, [`Error::Runtime`] when a worker panicked or the model gives no numbers; whatever `each`
    /// returns.
    pub fn embed(
        &mut self,
        texts: &[Vec<u32>],
        pooling: Pooling,
        each: &mut dyn FnMut(usize, Embedding) -> Result<()>,
    ) -> Result<()> {
        let mut first = 0;
        while first < texts.len() {
            let (mut tokens, most) = (0, self.batch());
            let together = texts[first..].iter().take(self.sequences()).take_while(|text| {
                tokens += text.len();
                tokens <= most
            });
            let together = together.count().max(1);
            let group = &texts[first..first + together];
            let group = group.iter().map(|ids| Embedding::new(ids.clone(), pooling));
            let mut group: Vec<Embedding> = group.collect::<Result<_>>()?;
            (0..self.sequences()).for_each(|sequence| self.truncate_of(sequence, 0));
            let tokens: Vec<BatchToken<'_>> = group
                .iter_mut()
                .enumerate()
                .flat_map(|(sequence, text)| text.tokens(sequence, usize::MAX).collect::<Vec<_>>())
                .collect();
            // States come in the order of the tokens.
            let owners = tokens.iter().filter(|token| token.needs.is_some());
            let owners: Vec<usize> = owners.map(|token| token.sequence).collect();
            self.forward_with(&tokens, &mut |row, state| {
                group[owners[row]].add(state);
                Ok(())
            })?;
            for mut text in group {
                text.end_pass();
                each(first, text)?;
                first += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_normalised_embedding_has_the_size_that_is_asked_for() {
        let of = |number: i64| {
            let mut values = [3.0f32, -4.0, 0.0];
            Normalisation::of_number(number).unwrap().apply(&mut values);
            values
        };
        assert_eq!(of(-1), [3.0, -4.0, 0.0]);
        assert_eq!(of(0), [24570.0, -32760.0, 0.0]);
        assert_eq!(of(1), [3.0 / 7.0, -4.0 / 7.0, 0.0]);
        assert_eq!(of(2), [0.6, -0.8, 0.0]);
        let cubes = (27.0f64 + 64.0).cbrt();
        assert_eq!(of(3), [(3.0 / cubes) as f32, (-4.0 / cubes) as f32, 0.0]);
        // The largest magnitude: no power overflows.
        assert_eq!(of(65535), [0.75, -1.0, 0.0]);
        for number in [-2, 65536, i64::MIN] {
            assert_eq!(Normalisation::of_number(number), None);
        }
        for number in -1..4 {
            let mut zeros = [0.0f32; 3];
            Normalisation::of_number(number).unwrap().apply(&mut zeros);
            assert_eq!(zeros, [0.0; 3]);
        }
    }

    /// States of tokens, given in pieces of any size, become the embeddings by their definition.
    #[test]
    fn pooling_is_what_its_name_says() {
        let states: Vec<[f32; 2]> =
            (0..5u8).map(|i| [f32::from(i), 1.0 / f32::from(i + 1)]).collect();
        let mean = |column: usize| {
            (states.iter().map(|state| f64::from(state[column])).sum::<f64>() / 5.0) as f32
        };
        for (pooling, expected) in [
            (Pooling::None, states.iter().map(|state| state.to_vec()).collect()),
            (Pooling::Mean, vec![vec![mean(0), mean(1)]]),
            (Pooling::Cls, vec![states[0].to_vec()]),
            (Pooling::Last, vec![states[4].to_vec()]),
        ] {
            for piece in 1..7 {
                let mut text = Embedding::new(vec![7; 5], pooling).unwrap();
                while text.left() > 0 {
                    let first = text.len() - text.left();
                    let tokens: Vec<BatchToken<'_>> = text.tokens(3, piece).collect();
                    assert!(tokens.iter().all(|token| (token.sequence, token.id) == (3, 7)));
                    let needed: Vec<usize> = (first..)
                        .zip(&tokens)
                        .filter(|(_, token)| token.needs == Some(&Needs::Hidden))
                        .map(|(place, _)| place)
                        .collect();
                    assert_eq!(text.accept(|row| &states[needed[row]]), needed.len());
                }
                assert_eq!(text.finish(Normalisation::None), expected, "{pooling}, {piece}");
            }
        }
        Embedding::new(Vec::new(), Pooling::Last).unwrap_err();
        for pooling in Pooling::ALL {
            assert_eq!(pooling.name().parse::<Pooling>().unwrap(), pooling);
        }
        let error = "rank".parse::<Pooling>().unwrap_err().to_string();
        assert!(error.contains("none, mean, cls or last"), "{error}");
    }
}
