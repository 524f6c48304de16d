//! The lines of an image that a range of a plane lies in.

use std::ops::Range;

/// The lines that values `first..first + len` of a plane lie in: which, which columns, and where among the values.
pub fn lines(width: usize, first: usize, len: usize) -> impl Iterator<Item = (usize, Range<usize>, usize)> {
    let end = first + len;
    (first / width..end.div_ceil(width)).map(move |line| {
        let (start, stop) = ((line * width).max(first), ((line + 1) * width).min(end));
        (line, start - line * width..stop - line * width, start - first)
    })
}
