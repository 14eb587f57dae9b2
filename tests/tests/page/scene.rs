//! A run that trains, a browser that looks at its page, and what every picture has to hold.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anabranch_tests::process::{Browser, Cluster, DIGITS, Look, PATIENCE, Role};
use anyhow::Context as _;
use serde_json::json;

use crate::LAB;

pub(crate) const DESK: Look = Look { width: 1280, height: 900, is_phone: false, scheme: "light" };
pub(crate) const PHONE: Look = Look { width: 390, height: 844, is_phone: true, scheme: "dark" };

pub(crate) fn free_address() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// A run that trains: two agents, one that evaluates, and one that joined and went.
pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) address: String,
    pub(crate) browser: Browser,
    pictures: PathBuf,
}

impl Scene {
    /// Nothing where there is no browser. The coordinator gets more options.
    pub(crate) fn new(more: &[&str]) -> anyhow::Result<Option<Self>> {
        let Some(browser) = Browser::start()? else {
            println!("not done: there is no chromium to open the page with");
            return Ok(None);
        };
        let mut cluster = Cluster::new(Path::new(LAB), &DIGITS.replace("versions = 40", "versions = 1000000"))?;
        let address = free_address()?;
        cluster.serve_with(&[&["--page", address.as_str()], more].concat());
        cluster.start_coordinator()?;
        let (shards, test) = cluster.split_digits(2)?;
        let shards = [shards.join("agent-0"), shards.join("agent-1")];
        let args: [[&OsStr; 2]; 3] = [
            ["--shard".as_ref(), shards[0].as_os_str()],
            ["--shard".as_ref(), shards[1].as_os_str()],
            ["--eval-shard".as_ref(), test.as_os_str()],
        ];
        for (name, args) in ["clinic", "factory", "judge"].into_iter().zip(args) {
            cluster.join(name)?;
            cluster.start_agent(Role::Agent, name, &args, &[])?;
        }
        cluster.wait_until("two measurements", PATIENCE, |status| status.aggregates.len() >= 2)?;
        Ok(Some(Self { cluster, address, browser, pictures: pictures()? }))
    }

    /// The run, as requests name it.
    pub(crate) fn run_id(&self) -> anyhow::Result<String> {
        Ok(self.cluster.status()?.run.to_string())
    }

    /// A token of the page.
    pub(crate) fn token(&self, options: &[&str]) -> anyhow::Result<String> {
        page_token(&self.cluster, options)
    }

    pub(crate) fn page(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Looks at what is shown at both widths, light and dark: everything fits, and every text can be read.
    pub(crate) fn look_at(&mut self, name: &str) -> anyhow::Result<()> {
        look_at(&mut self.browser, &self.pictures, name)
    }
}

/// A token of the page.
pub(crate) fn page_token(cluster: &Cluster, options: &[&str]) -> anyhow::Result<String> {
    Ok(cluster.coordinate(&["page", "token", "create"], options)?.code(0)?.stdout.trim().to_owned())
}

/// Where pictures are left.
pub(crate) fn pictures() -> anyhow::Result<PathBuf> {
    let pictures = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("page");
    std::fs::create_dir_all(&pictures)?;
    Ok(pictures)
}

/// As [`Scene::look_at`].
pub(crate) fn look_at(browser: &mut Browser, pictures: &Path, name: &str) -> anyhow::Result<()> {
    for (width, look) in [("desk", DESK), ("phone", PHONE)] {
        for scheme in ["light", "dark"] {
            browser.look(Look { scheme, ..look })?;
            browser.wait_for(&format!("matchMedia('(prefers-color-scheme: {scheme})').matches"))?;
            browser.picture(&pictures.join(format!("{name}-{width}-{scheme}.png")))?;
            let wide = browser.eval("document.documentElement.scrollWidth - innerWidth")?;
            assert!(wide.as_i64().is_some_and(|pixels| pixels <= 0), "{name} is {wide} pixels too wide at {width}");
            let faint = browser.eval(FAINT)?;
            assert_eq!(faint, json!([]), "{name}: text without contrast in {scheme}");
        }
    }
    browser.look(DESK)
}

/// Presses Tab until an element that is meant has the focus.
pub(crate) fn tab_to(browser: &mut Browser, selector: &str) -> anyhow::Result<()> {
    let elements = browser
        .eval("document.querySelectorAll('a, button, input, [tabindex]').length")?
        .as_u64()
        .context("a number")?;
    for _ in 0..=elements {
        browser.press("Tab")?;
        if browser.eval(&format!("document.activeElement.matches({})", json!(selector)))? == true {
            return Ok(());
        }
    }
    anyhow::bail!("{selector} is not reached by Tab")
}

/// Texts whose contrast with what is behind them is less than 4.5 (WCAG 2.2, success criterion 1.4.3).
const FAINT: &str = r#"(() => {
  const parts = (text) => text.match(/[\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parts(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
    if (["NOSCRIPT", "SCRIPT"].includes(element.tagName)) continue;
    const ink = light(parts(element.namespaceURI.endsWith("svg") ? style.fill : style.color)), paper = light(behind(element));
    const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (contrast < 4.5) found.push(`${walker.currentNode.data}: ${contrast.toFixed(2)}`);
  }
  return found;
})()"#;
