//! What comes of a training: sums over an epoch, an epoch's result, events.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Losses that the mean of the last ones is taken over.
const LAST_LOSSES: usize = 30;

/// What came of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochResult {
    /// From 0, as in plans and batches.
    pub epoch: u64,
    /// The mixed, smoothed loss, mean over images.
    pub train_loss: f64,
    /// Share of mixed images whose own label was predicted.
    pub train_acc: f64,
    /// Mean of the last 30 batches' losses.
    pub last30_loss: f64,
    /// Seconds of training.
    pub train_s: f64,
    /// Training images a second.
    pub images_per_s: f64,
    /// What validation gave; absent where the data set has no validation split. In JSON its fields stand beside the others.
    #[serde(flatten)]
    pub valid: Option<ValidResult>,
}

/// What came of one validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ValidResult {
    /// Plain cross-entropy on validation images.
    #[serde(rename = "valid_ce")]
    pub ce: f64,
    /// Smoothed loss on validation images.
    #[serde(rename = "valid_ls")]
    pub ls: f64,
    /// Share of validation images predicted right.
    #[serde(rename = "valid_acc")]
    pub acc: f64,
    /// Seconds of validation.
    #[serde(rename = "valid_s")]
    pub seconds: f64,
}

/// What happens while training.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// A training batch is done.
    Step {
        /// From 0.
        epoch: u64,
        /// From 0.
        index: u64,
        /// Batches in the epoch.
        batches: u64,
        /// The batch's loss.
        loss: f64,
        /// Mean over the epoch's images so far.
        running_loss: f64,
        /// Share over the epoch's images so far.
        running_acc: f64,
    },
    /// Validation begins.
    Validating,
    /// An epoch is done.
    Epoch(EpochResult),
}

/// Sums over the images of an epoch so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Running {
    /// Images.
    pub images: f64,
    /// Of their losses.
    pub loss: f64,
    /// Images whose own label was predicted.
    pub right: f64,
    /// Losses of the last batches, the newest last.
    pub last_losses: VecDeque<f64>,
}

impl Running {
    /// Adds a batch: how many images, the mean of their losses, and how many were predicted right.
    pub fn add(&mut self, images: f64, loss: f64, right: f64) {
        self.images += images;
        self.loss += loss * images;
        self.right += right;
        if self.last_losses.len() == LAST_LOSSES {
            self.last_losses.pop_front();
        }
        self.last_losses.push_back(loss);
    }

    /// Mean loss over the images.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.images
    }

    /// Share of the images whose own label was predicted.
    pub fn accuracy(&self) -> f64 {
        self.right / self.images
    }
}
