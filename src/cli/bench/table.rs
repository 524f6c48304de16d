//! The result of a bench as lines for people.

use serde_json::Value;
use std::fmt::Write;

/// A line a figure, of a result that was measured.
pub fn table(result: &Value) -> String {
    let mut table = Table(String::new());
    table.rates(result);
    table.costs(result);
    table.device(result);
    table.stages(result);
    table.0
}

/// A number with a unit, or a dash.
fn text(value: &Value, unit: &str) -> String {
    value.as_f64().map_or("-".to_owned(), |value| format!("{value:.1}{unit}"))
}

struct Table(String);

impl Table {
    fn row(&mut self, name: &str, value: impl std::fmt::Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{name:<28} {value}");
    }

    fn rates(&mut self, result: &Value) {
        let number = |key: &str| result[key].as_f64();
        self.row("images/s", format!("{:.0}", number("images_per_s").unwrap_or(0.0)));
        if let (Some(ceiling), Some(share)) = (number("ceiling_images_per_s"), number("share_of_ceiling")) {
            let kind = result["ceiling"]["kind"].as_str().unwrap_or_default();
            self.row("share of the ceiling", format!("{:.0} % of {ceiling:.0} images/s ({kind})", share * 100.0));
        }
        if let Some(alone) = result["alone"].as_object() {
            let number = |key: &str| alone[key].as_f64().unwrap_or(0.0);
            self.row("one trainer alone", format!("{:.0} images/s", number("images_per_s")));
            self.row("  the slowest sharer's rate", format!("{:.2} of that", number("slowest_trainer_of_alone")));
            self.row("  daemon CPU an image", format!("{:.2} of alone", number("cpu_of_alone")));
        }
        if let Some(python) = result["python"].as_object() {
            let number = |key: &str| python[key].as_f64().unwrap_or(0.0);
            let (images_per_s, of_rust) = (number("images_per_s"), number("of_rust"));
            self.row("a loop in Python", format!("{images_per_s:.0} images/s, {of_rust:.2} of the trainer in Rust"));
        }
    }

    fn costs(&mut self, result: &Value) {
        self.row("images", &result["images"]);
        self.row("seconds", text(&result["seconds"], " s"));
        self.row("daemon CPU", text(&result["cpu_seconds"], " s"));
        self.row("  per 1,000 images", text(&result["cpu_ms_per_1000_images"], " ms"));
        self.row("trainers' CPU", text(&result["trainer_cpu_seconds"], " s"));
        let (store, rings) = (text(&result["store_mb"], ""), text(&result["rings_mb"], " MB"));
        let peak = text(&result["peak_rss_mb"], " MB");
        self.row("daemon's largest memory", format!("{peak}, of which store {store} and rings {rings}"));
        self.row("first batch after", text(&result["first_batch_ms"], " ms"));
        self.row("attaching", text(&result["attach_ms"], " ms"));
        self.row("hand-off, median", text(&result["handoff_us_p50"], " µs"));
        self.row("hand-off, 99 %", text(&result["handoff_us_p99"], " µs"));
        let wake = |key: &str| result["ceiling"][key].as_f64();
        if let (Some(p50), Some(p99)) = (wake("wake_us_p50"), wake("wake_us_p99")) {
            self.row("  the kernel's wake-up alone", format!("{p50:.1} µs, {p99:.1} µs"));
        }
    }

    fn device(&mut self, result: &Value) {
        let Some(device) = result["device"].as_object() else { return };
        let number = |key: &str| device[key].as_f64().unwrap_or(0.0);
        let (to, from) = (number("to_device_bytes_per_image"), number("from_device_bytes_per_image"));
        self.row("over the bus, an image", format!("{to:.0} bytes to the device, {from:.0} back"));
        if let Some(bytes) = device["on_device_bytes_per_image"].as_f64() {
            self.row("in its memory, an image", format!("{bytes:.0} bytes"));
        }
        self.row("samples kept there", format!("{:.0} MB", number("resident_mb")));
        if let (Some(name), Some(kernel)) = (device["name"].as_str(), device["kernel_images_per_s"].as_f64()) {
            let share = 100.0 * number("kernel_share_of_copy");
            let (to, back) = (number("host_copy_bytes_per_s"), number("copy_back_bytes_per_s"));
            self.row("the device", name);
            let copies = number("copy_bytes_per_s") / 1e9;
            self.row("  copies in its memory", format!("{copies:.1} GB/s, read and written"));
            self.row("  copies to it, and back", format!("{:.1} and {:.1} GB/s, pinned memory", to / 1e9, back / 1e9));
            self.row("  the kernel alone", format!("{kernel:.0} images/s, {share:.0} % of what copies move"));
        }
    }

    fn stages(&mut self, result: &Value) {
        self.row("verdict", result["verdict"]["text"].as_str().unwrap_or_default());
        for stage in result["stages"].as_array().into_iter().flatten() {
            let time = |key: &str| stage[key].as_f64().unwrap_or(0.0);
            let name = format!("stage {}", stage["name"].as_str().unwrap_or_default());
            let (busy, input, output) = (time("busy_s"), time("waiting_in_s"), time("waiting_out_s"));
            let items = &stage["items"];
            self.row(
                &name,
                format!("{items} items, busy {busy:.2} s, waiting in {input:.2} s, waiting out {output:.2} s"),
            );
        }
    }
}
