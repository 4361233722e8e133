//! One batch of completions on its way to JavaScript: `(id, status, value)` triples, and the values that are no numbers.

use napi::bindgen_prelude::{Array, Float64ArraySlice, ToNapiValue, Unknown};
use napi::{Env, Result};

use crate::error::ErrorData;
use crate::outbox::CallId;
use crate::raw;

/// What `value` of a triple is.
#[derive(Clone, Copy)]
enum Status {
    Number = 0,
    Value = 1,
    Error = 2,
    Progress = 3,
}

/// How far a call is, as JavaScript sees it.
#[napi(object, object_from_js = false)]
pub struct ProgressData {
    /// What it is doing, such as `convert`.
    pub phase: String,
    /// Bytes of work done.
    pub done: f64,
    /// Bytes of work in all.
    pub total: f64,
}

/// The two arguments of the completion function while they are filled.
pub(crate) struct Values<'env> {
    triples: Vec<f64>,
    values: Array<'env>,
}

impl<'env> Values<'env> {
    pub(crate) fn new(env: &'env Env, calls: usize) -> Result<Self> {
        Ok(Self {
            triples: Vec::with_capacity(calls * 3),
            values: env.create_array(0)?,
        })
    }

    /// The call ended with a plain number.
    pub(crate) fn number(&mut self, id: CallId, number: f64) {
        self.triple(id, Status::Number, number);
    }

    /// The call failed.
    pub(crate) fn error(&mut self, id: CallId, error: ErrorData) -> Result<()> {
        self.add(error)?;
        self.last(id, Status::Error);
        Ok(())
    }

    /// The call goes on.
    pub(crate) fn progress(&mut self, id: CallId, progress: ProgressData) -> Result<()> {
        self.add(progress)?;
        self.last(id, Status::Progress);
        Ok(())
    }

    /// Adds a value without a call that it belongs to; [`Values::ended_with_last`] gives it one.
    pub(crate) fn add(&mut self, value: impl ToNapiValue) -> Result<()> {
        self.values.insert(value)
    }

    /// The call ended with the value that was added last.
    pub(crate) fn ended_with_last(&mut self, id: CallId) {
        self.last(id, Status::Value);
    }

    pub(crate) fn into_arguments(self, env: &Env) -> Result<(Unknown<'static>, Unknown<'static>)> {
        let triples = Float64ArraySlice::copy_from(env, &self.triples)?;
        raw::arguments(env, &triples, self.values)
    }

    fn last(&mut self, id: CallId, status: Status) {
        let index = self.values.len().saturating_sub(1);
        self.triple(id, status, f64::from(index));
    }

    fn triple(&mut self, id: CallId, status: Status, value: f64) {
        // Numbers of calls are small: JavaScript counts them from 1.
        self.triples.extend([id as f64, f64::from(status as u8), value]);
    }
}
