//! A feed as Python sees it.

use crate::batch::Batch;
use crate::errors::{SpecError, raised};
use crate::fault;
use crate::held::Held;
use mixd::client::{self, ClientError, RingError};
use mixd::spec::{Consumed, Deal, Delivery, FeedOptions, FeedSpec, Recipe, Share, ShareName};
use mixd::types::{Device, Place, Start};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyUserWarning};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::ffi::CString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long a wait may go on before Python is asked whether a signal has come. A signal that reaches this thread ends its sleep, so that
/// this is no delay of Ctrl-C; one that reaches another is seen within 250 ms.
const PATIENCE: Duration = Duration::from_millis(20);

/// A feed spec, checked; what is left out has the split's default. Numbers that are out of range are refused by name.
#[pyclass(frozen, module = "mixd")]
pub struct Spec(FeedSpec);

/// What Python says of a feed beside its options: how it takes part, and what it carries for the trainer.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Extra {
    smoothing: f64,
    share: Option<ShareName>,
    delivery: Option<Delivery>,
    max_lag: Option<f64>,
    start: Option<String>,
    device: Option<Device>,
}

/// Options from JSON; an error names the option, its value and what it may be.
fn options<T: DeserializeOwned>(json: &str) -> Result<T, String> {
    let text = |error: serde_json::Error| format!("bad feed spec: {error}");
    let options: Map<String, Value> = serde_json::from_str(json).map_err(text)?;
    // Each by itself, since errors of JSON do not name the key.
    for (key, value) in &options {
        // `lambda` is a word of Python's own.
        let name = if key == "lambda" { "lam" } else { key };
        let alone = Map::from_iter([(key.clone(), value.clone())]);
        if let Err(error) = serde_json::from_value::<T>(alone.into()) {
            return Err(match serde_json::from_value::<Recipe>(value.clone()) {
                Err(error) if key == "recipe" => format!("bad feed spec: recipe: {error}"),
                _ => format!("bad feed spec: {name} is {value}: {error}"),
            });
        }
    }
    serde_json::from_value(options.into()).map_err(text)
}

/// The spec that options describe, both as JSON, over a recipe as TOML or the default one.
fn spec(feed: &str, extra: &str, recipe: Option<&str>) -> Result<FeedSpec, String> {
    let feed: FeedOptions = options(feed)?;
    let Extra { smoothing, share, delivery, max_lag, start, device } = options(extra)?;
    let recipe = recipe.map_or_else(|| Ok(Recipe::default()), |toml| Recipe::from_toml(toml, "the daemon's recipe"));
    let spec = feed.spec_or(&recipe.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    let share = share.map(|name| {
        let base = Share::new(name);
        Share { delivery: delivery.unwrap_or(base.delivery), max_lag_s: max_lag.unwrap_or(base.max_lag_s), ..base }
    });
    let start =
        start.map_or(Ok(Start::Now), |start| start.parse()).map_err(|error| format!("bad feed spec: {error}"))?;
    let spec = FeedSpec { smoothing, share, start, device: device.unwrap_or_default(), ..spec };
    spec.validate().map_err(|error| error.to_string())?;
    Ok(spec)
}

#[pymethods]
impl Spec {
    #[new]
    #[pyo3(signature = (options, extra, recipe=None))]
    fn new(options: &str, extra: &str, recipe: Option<&str>) -> PyResult<Self> {
        spec(options, extra, recipe).map(Self).map_err(SpecError::new_err)
    }

    /// The spec with all its keys, as JSON.
    fn json(&self) -> PyResult<String> {
        serde_json::to_string(&self.0).map_err(|error| PyRuntimeError::new_err(error.to_string()))
    }

    /// The spec, and the place, with which this feed goes on where `world_size` ranks of it stopped before `place`, over a split of `samples`.
    fn resumed(
        &self,
        samples: u32,
        world_size: u32,
        consumed: Option<(u64, u32)>,
        place: (u64, u64),
    ) -> PyResult<(Self, (u64, u64))> {
        let consumed = consumed.map(|(epoch, samples)| Consumed { epoch, samples });
        let start = Start::At(Place { epoch: place.0, index: place.1 });
        let stopped = FeedSpec { rank: 0, world_size, consumed, start, ..self.0 };
        let refused = |error: String| SpecError::new_err(format!("the state names a place that is not there: {error}"));
        stopped.validate().map_err(|error| refused(error.to_string()))?;
        let resumed = Deal::new(stopped, samples).and_then(|deal| deal.resharded(self.0));
        let resumed = resumed.map_err(|error| refused(error.to_string()))?;
        let Place { epoch, index } = resumed.start.of_a_new_feed(Place::default());
        Ok((Self(FeedSpec { start: self.0.start, ..resumed }), (epoch, index)))
    }
}

struct State {
    /// None once it was closed.
    feed: Option<client::Feed>,
    /// The first batch after the epoch that was asked for, whose end was skipped (delivery latest): it comes next.
    ahead: Option<(Batch, Place)>,
    lent: Lent,
}

/// Batches that were lent and may be held still.
#[derive(Default)]
struct Lent {
    list: Vec<Weak<Held>>,
    /// At how many those that are not held any more are looked for.
    sweep_at: usize,
}

impl Lent {
    /// Adds one; in constant time, amortized: there are never more than twice as many as were held at once, and a few.
    fn push(&mut self, held: &Arc<Held>) {
        if self.list.len() >= self.sweep_at {
            self.list.retain(|lent| lent.strong_count() > 0);
            self.sweep_at = 2 * self.list.len() + 16;
        }
        self.list.push(Arc::downgrade(held));
    }

    /// Each that is held, with what holds it.
    fn describe(&self) -> Vec<String> {
        self.list.iter().filter_map(Weak::upgrade).map(|held| held.describe()).collect()
    }
}

/// What came of waiting for a batch.
enum Taken {
    Batch(Batch),
    /// The next batch is of another epoch than was asked for.
    Over,
    /// None has come yet, or the feed was closed.
    Nothing,
}

/// A feed that this process reads.
#[pyclass(frozen, module = "mixd")]
pub struct Feed {
    state: Mutex<State>,
    /// Place of the next batch. Written under the lock of the state, which a thread that waits for a batch holds.
    next: Mutex<Place>,
    /// With delivery latest, the batch that is given back when the next is asked for.
    last: Mutex<Option<Py<Batch>>>,
    lends_one: bool,
    batches: u64,
    samples: u32,
    identity: u64,
    label_sets: Option<Py<PyTuple>>,
    /// The process that opened it: a child's copy of the locks may be held for good.
    pid: u32,
    closing: AtomicBool,
    /// Whether it was said that batches are held for long.
    warned: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a daemon's socket is by default.
#[pyfunction]
pub fn default_socket() -> PathBuf {
    client::default_socket()
}

/// Takes the batches of the process that this one was forked from out of its memory.
#[pyfunction]
pub fn forget() {
    mixd::ring::forget();
}

/// A daemon's process id; the recipe, as TOML, of feeds that name none, if it has one; each class by its folder and its name; the samples of train
/// and of val.
type Described = (u32, Option<String>, Vec<(String, String)>, (u32, u32));

/// Describes the daemon behind a socket.
#[pyfunction]
pub fn daemon(py: Python<'_>, socket: PathBuf) -> PyResult<Described> {
    let status = uninterrupted(py, |interrupted| client::status_unless(&socket, interrupted))?;
    let classes = status.classes.into_iter().map(|class| (class.id, class.name)).collect();
    Ok((status.pid, status.recipe, classes, (status.train_samples, status.val_samples)))
}

/// Waits without the interpreter, but for signals, whose exception it raises.
fn uninterrupted<T: Send>(
    py: Python<'_>,
    wait: impl Send + FnOnce(&dyn Fn() -> bool) -> Result<Option<T>, ClientError>,
) -> PyResult<T> {
    // Set by this thread as it looks for signals, which takes the interpreter.
    let raised_meanwhile = Mutex::new(None);
    let interrupted =
        || Python::attach(|py| py.check_signals()).map_err(|error| *lock(&raised_meanwhile) = Some(error)).is_err();
    let waited = py.detach(|| wait(&interrupted)).map_err(|error| raised(&error))?;
    waited.ok_or_else(|| lock(&raised_meanwhile).take().expect("why it was interrupted"))
}

/// Opens a feed, at a place where one is given; `reconnect` is the seconds to wait for the next daemon when this one has died.
#[pyfunction]
pub fn attach(
    py: Python<'_>,
    socket: PathBuf,
    spec: &Bound<'_, Spec>,
    place: Option<(u64, u64)>,
    reconnect: f64,
) -> PyResult<Feed> {
    let reconnect = Duration::try_from_secs_f64(reconnect)
        .map_err(|_| SpecError::new_err(format!("reconnect is {reconnect}: it must be a number of seconds")))?;
    let spec = spec.get().0;
    let start = place.map_or(spec.start, |(epoch, index)| Start::At(Place { epoch, index }));
    let spec = FeedSpec { start, ..spec };
    fault::catch_writes();
    let feed = uninterrupted(py, |interrupted| client::attach_unless(&socket, &spec, reconnect, interrupted))?;
    let lends_one = spec.share.is_some_and(|share| share.delivery == Delivery::Latest);
    let (next, batches, samples, identity) =
        (Mutex::new(feed.place()), feed.batches(), feed.samples(), feed.identity());
    let sets = feed.label_sets().iter().map(|set| PyTuple::new(py, set.iter()));
    let sets = if feed.label_sets().is_empty() { None } else { Some(sets.collect::<PyResult<Vec<_>>>()?) };
    let label_sets = sets.map(|sets| PyTuple::new(py, sets)).transpose()?.map(Bound::unbind);
    let state = Mutex::new(State { feed: Some(feed), ahead: None, lent: Lent::default() });
    let (closing, warned) = (AtomicBool::new(false), AtomicBool::new(false));
    let (last, pid) = (Mutex::new(None), std::process::id());
    Ok(Feed { state, next, last, lends_one, batches, samples, identity, label_sets, pid, closing, warned })
}

#[pymethods]
impl Feed {
    /// Waits for the next batch; with `epoch` for the next of that epoch, and returns None where it is over. Each batch goes to one thread.
    #[pyo3(signature = (epoch=None))]
    fn next_batch(&self, py: Python<'_>, epoch: Option<u64>) -> PyResult<Option<Py<Batch>>> {
        self.check()?;
        if self.lends_one
            && epoch.is_none_or(|epoch| lock(&self.next).epoch == epoch)
            && let Some(last) = lock(&self.last).take()
        {
            last.get().give_back();
        }
        loop {
            let since = Instant::now();
            let interrupted = || self.closing.load(Ordering::Relaxed) || since.elapsed() > PATIENCE;
            let next = py.detach(|| {
                let mut state = lock(&self.state);
                let taken = state.take(epoch, &interrupted);
                if let Some(place) = state.place() {
                    *lock(&self.next) = place;
                }
                taken
            });
            match next {
                Ok(Taken::Batch(batch)) => {
                    let sets = self.label_sets.as_ref().map(|sets| sets.clone_ref(py));
                    let batch = Py::new(py, batch.with_label_sets(sets))?;
                    if self.lends_one {
                        *lock(&self.last) = Some(batch.clone_ref(py));
                    }
                    return Ok(Some(batch));
                }
                Ok(Taken::Over) => return Ok(None),
                Ok(Taken::Nothing) if self.closing.load(Ordering::Relaxed) => return Err(closed()),
                Ok(Taken::Nothing) => py.check_signals()?,
                // What is held for longer than the ring can wait becomes a copy, so that the feed goes on.
                Err(ClientError::Ring(RingError::AllLeased(_) | RingError::OneAtATime)) => self.keep_oldest(py)?,
                Err(error) => return Err(raised(&error)),
            }
        }
    }

    /// Batches that are held still, each with what holds it.
    fn held(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.check()?;
        Ok(py.detach(|| lock(&self.state).lent.describe()))
    }

    /// Leaves the feed, and ends a wait that goes on in another thread. Batches that are held stay as they are, in copies.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if self.check().is_err() {
            return Ok(());
        }
        self.closing.store(true, Ordering::Relaxed);
        if let Some(last) = lock(&self.last).take() {
            last.get().give_back();
        }
        let left = py.detach(|| {
            let mut state = lock(&self.state);
            state.ahead = None;
            state.feed.take().map_or(Ok(()), client::Feed::leave)
        });
        left.map_err(|error| raised(&error))
    }

    /// Epoch and index of the next batch.
    #[getter]
    fn place(&self) -> PyResult<(u64, u64)> {
        self.check()?;
        let Place { epoch, index } = *lock(&self.next);
        Ok((epoch, index))
    }

    /// Batches in each epoch.
    #[getter]
    fn batches(&self) -> PyResult<u64> {
        self.check()?;
        Ok(self.batches)
    }

    /// Samples of the split.
    #[getter]
    fn samples(&self) -> PyResult<u32> {
        self.check()?;
        Ok(self.samples)
    }

    /// The classes in the order of their labels: folder and readable name.
    #[getter]
    fn classes(&self, py: Python<'_>) -> PyResult<Vec<(String, String)>> {
        let classes = self.of(py, |feed| feed.classes().to_vec())?;
        Ok(classes.into_iter().map(|class| (class.id, class.name)).collect())
    }

    /// Where images have several labels: the sets of classes, as tuples, that labels number.
    #[getter]
    fn label_sets(&self, py: Python<'_>) -> Option<Py<PyTuple>> {
        self.label_sets.as_ref().map(|sets| sets.clone_ref(py))
    }

    /// Hash of everything beside its spec that the feed's bytes depend on.
    #[getter]
    fn identity(&self) -> PyResult<u64> {
        self.check()?;
        Ok(self.identity)
    }

    /// The daemon's process id.
    #[getter]
    fn daemon_pid(&self, py: Python<'_>) -> PyResult<u32> {
        self.of(py, client::Feed::daemon_pid)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a feed belongs to the process that opened it, and is not pickled (open one in the other process)",
        ))
    }
}

fn closed() -> PyErr {
    PyRuntimeError::new_err("the feed was closed (open another: server.feed(...))")
}

impl Feed {
    /// Copies the oldest batch that is held, and says once which one that is. A latest feed lends one batch at a time anyway.
    fn keep_oldest(&self, py: Python<'_>) -> PyResult<()> {
        // What holds them is looked for once: there may be thousands.
        let warns = !self.lends_one && !self.warned.swap(true, Ordering::Relaxed);
        let held = py.detach(|| {
            let mut state = lock(&self.state);
            let held = if warns { state.lent.describe() } else { Vec::new() };
            state.feed.as_mut().map_or(Ok(()), client::Feed::keep_oldest).map(|()| held)
        });
        let held = held.map_err(|error| raised(&error))?;
        if warns {
            let text = format!(
                "a batch was held for longer than the feed's slots allow, and has been copied so that the feed goes on; held are {} (drop what is \
                 not needed any more, or open the feed with more slots)",
                held.join("; ")
            );
            PyErr::warn(py, &py.get_type::<PyUserWarning>(), &CString::new(text)?, 3)?;
        }
        Ok(())
    }

    /// Whether this is the process that opened it.
    fn check(&self) -> PyResult<()> {
        if self.pid == std::process::id() { Ok(()) } else { Err(raised(&RingError::Forked(self.pid).into())) }
    }

    /// Asks the feed, if it is open.
    fn of<T: Send>(&self, py: Python<'_>, ask: impl FnOnce(&client::Feed) -> T + Send) -> PyResult<T> {
        self.check()?;
        py.detach(|| lock(&self.state).feed.as_ref().map(ask)).ok_or_else(closed)
    }
}

impl State {
    /// Waits for the next batch, if it is of this epoch, until `interrupted`.
    fn take(&mut self, epoch: Option<u64>, interrupted: &dyn Fn() -> bool) -> Result<Taken, ClientError> {
        let is_wanted = |place: Place| epoch.is_none_or(|epoch| epoch == place.epoch);
        let Some(feed) = &mut self.feed else { return Ok(Taken::Nothing) };
        let (batch, place) = match self.ahead.take() {
            Some(ahead) => ahead,
            None if !is_wanted(feed.place()) => return Ok(Taken::Over),
            None => {
                let Some(lease) = feed.next_batch_unless(interrupted)? else { return Ok(Taken::Nothing) };
                let (place, mixer) = (lease.place(), feed.mixer());
                let held = Arc::new(Held::new(lease, mixer));
                self.lent.push(&held);
                (Batch::new(held), place)
            }
        };
        if is_wanted(place) {
            return Ok(Taken::Batch(batch));
        }
        self.ahead = Some((batch, place));
        Ok(Taken::Over)
    }

    /// Where the next batch stands.
    fn place(&self) -> Option<Place> {
        self.ahead.as_ref().map(|(_, place)| *place).or_else(|| self.feed.as_ref().map(client::Feed::place))
    }
}
