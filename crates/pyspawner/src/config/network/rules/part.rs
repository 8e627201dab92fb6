//! A part of the text that knows where it is.

use std::ops::RangeInclusive;

use super::RuleError;

#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) text: &'a str,
    /// Characters before it: people do not count bytes.
    at: usize,
}

impl<'a> Part<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// A problem that begins at this byte.
    pub(super) fn error(self, byte: usize, problem: impl Into<String>) -> RuleError {
        RuleError { problem: problem.into(), at: self.after(byte).at }
    }

    /// What is before the first of these characters, and the rest, which begins with it.
    pub(super) fn split_before(self, characters: &[char]) -> (Self, Self) {
        self.split_at(self.text.find(characters).unwrap_or(self.text.len()))
    }

    /// What is before this byte, and the rest.
    pub(super) fn split_at(self, byte: usize) -> (Self, Self) {
        (Self { text: &self.text[..byte], at: self.at }, self.after(byte))
    }

    /// The rest from this byte on.
    pub(super) fn after(self, byte: usize) -> Self {
        let (before, text) = self.text.split_at(byte);
        Self { text, at: self.at + before.chars().count() }
    }

    /// What is between these characters: at least one part, though it may be empty.
    pub(super) fn items(self, separator: char) -> impl Iterator<Item = Self> {
        let mut left = Some(self);
        std::iter::from_fn(move || {
            let (item, rest) = left?.split_before(&[separator]);
            left = (!rest.text.is_empty()).then(|| rest.after(separator.len_utf8()));
            Some(item)
        })
    }

    /// A decimal number, without the signs and zeros that Rust would take.
    pub(super) fn number(self, what: &str, range: RangeInclusive<u16>) -> Result<u16, RuleError> {
        let text = self.text;
        if text.is_empty() {
            return Err(self.error(0, format!("a {what} is missing")));
        }
        let (least, most) = (range.start(), range.end());
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(self.error(0, format!("{text:?} is not a {what} ({least} to {most})")));
        }
        if text.len() > 1 && text.starts_with('0') {
            return Err(self.error(0, format!("{text} is not a {what}: it has a leading zero")));
        }
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(self.error(0, format!("{text} is not a {what} ({least} to {most})"))),
        }
    }
}
