//! Weights as the vector passes of the exact resize read them: split in two parts of 11 bits, in groups of taps or of outputs.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "vectors of x86-64 read most of it"))]

/// Bits of a weight's fraction.
pub const FRACTION: u32 = 22;
/// Outputs of a block of the first pass: a vector's sums.
pub const BLOCK: usize = 16;
/// The most bytes of a row that a block's inputs may lie in: two vectors, which one permutation picks from.
pub const WINDOW: usize = 128;
/// The most pairs of taps of the first pass that are compiled.
pub const PAIRS_MAX: usize = 5;
/// Columns of a step of the second pass.
pub const STEP: usize = 64;

/// Bits of the low part of a split weight.
pub const LOW: u32 = 11;

/// The weights of four neighbouring taps, each split; two taps' 16-bit parts in an element.
#[derive(Clone, Copy)]
pub struct Four {
    /// Of the first two taps and of the last two.
    pub high: [i32; 2],
    /// The same.
    pub low: [i32; 2],
}

impl Four {
    /// Splits four weights. The high part has the weight's sign, the low part none.
    #[inline]
    pub fn new(weights: &[i32]) -> Self {
        let pair = |part: fn(i32) -> i32, at: usize| part(weights[at]) & 0xFFFF | part(weights[at + 1]) << 16;
        let both = |part| [pair(part, 0), pair(part, 2)];
        Self { high: both(|weight| weight >> LOW), low: both(|weight| weight & ((1 << LOW) - 1)) }
    }
}

/// Sixteen neighbouring outputs of the first pass.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Block {
    /// For each output, in 32 bits: its first input from `input` on, a byte that is not used, the input after that.
    pub inputs: [u8; 4 * BLOCK],
    /// The first output.
    pub output: usize,
    /// The first input of all.
    pub input: usize,
}

/// The 16-bit parts of two taps' weights in 32 bits, of the outputs of a block: the high ones, then the low ones.
pub type Weights = [[i32; BLOCK]; 2];

/// What the first pass reads of an axis.
#[derive(Default)]
pub struct Blocks {
    /// In the order of outputs.
    pub blocks: Vec<Block>,
    /// `[block][pair of taps]`.
    pub weights: Vec<Weights>,
    /// Pairs of taps of each output.
    pub pairs: usize,
    /// The most inputs from a block's first to its last.
    pub span: usize,
}

impl Blocks {
    /// From the first inputs and the weights, `[output][tap]`, of an axis; none where the first pass of AVX-512 does not do.
    pub fn build(&mut self, first: &[u32], weights: &[i32], taps: usize, used: usize) {
        self.clear();
        self.pairs = used.div_ceil(2);
        if first.len() < STEP || self.pairs > PAIRS_MAX {
            return;
        }
        // The last sixteen outputs may overlap those before.
        let tail = (!first.len().is_multiple_of(BLOCK)).then_some(first.len() - BLOCK);
        for output in (0..=first.len() - BLOCK).step_by(BLOCK).chain(tail) {
            let of_block: &[u32; BLOCK] = first[output..][..BLOCK].try_into().expect("sixteen");
            let (input, last) = of_block.iter().fold((u32::MAX, 0), |(low, high), &at| (low.min(at), high.max(at)));
            self.span = self.span.max((last - input) as usize + used);
            let mut inputs = [0; 4 * BLOCK];
            for (inputs, &first) in inputs.chunks_exact_mut(4).zip(of_block) {
                let at = (first - input) as u8;
                (inputs[0], inputs[2]) = (at, at.wrapping_add(1));
            }
            self.blocks.push(Block { inputs, output, input: input as usize });
            for pair in 0..self.pairs {
                let mut parts = [[0; BLOCK]; 2];
                for (nth, weights) in weights[output * taps..][..BLOCK * taps].chunks_exact(taps).enumerate() {
                    let (a, b) = (weights[2 * pair], weights[2 * pair + 1]);
                    parts[0][nth] = (a >> LOW) & 0xFFFF | (b >> LOW) << 16;
                    parts[1][nth] = a & ((1 << LOW) - 1) | (b & ((1 << LOW) - 1)) << 16;
                }
                self.weights.push(parts);
            }
        }
    }

    /// Forgets an axis, but not the memory.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.weights.clear();
        (self.pairs, self.span) = (0, 0);
    }

    /// Whether the first pass of AVX-512 does for pictures of so many channels.
    pub fn suit(&self, channels: usize) -> bool {
        !self.blocks.is_empty() && self.span * channels <= WINDOW
    }
}
