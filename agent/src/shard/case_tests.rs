//! The cases of `agent/tests/shards`, which the Python reader runs too.

use std::fs;

use serde::Deserialize;

use super::*;

#[derive(Debug, Deserialize)]
struct Case {
    file: String,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    drop: Vec<String>,
    #[serde(default)]
    columns: Option<Vec<String>>,
    /// The agent's other shard.
    #[serde(default)]
    train: Option<String>,
    #[serde(default)]
    eval: Option<String>,
    #[serde(flatten)]
    expected: Expected,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Expected {
    Good { inputs: Vec<Vec<Value>>, labels: Vec<u32> },
    Refused { refused: String, line: Option<u64> },
}

/// A value, or its bits in hexadecimal.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Value {
    Number(f32),
    Bits(String),
}

impl Value {
    fn bits(&self) -> u32 {
        match self {
            Self::Number(number) => number.to_bits(),
            Self::Bits(bits) => u32::from_str_radix(bits, 16).expect("hexadecimal"),
        }
    }
}

/// Returns what is wrong with a case, if anything.
fn run(folder: &Path, case: &Case) -> Result<(), String> {
    let mut options = ShardOptions::default().drop_columns(case.drop.as_slice());
    options.label_column = case.label.clone().unwrap_or(options.label_column);
    options.columns.clone_from(&case.columns);
    let path = |file: &String| folder.join(file);
    let (train, eval) = (case.train.as_ref().map(path), case.eval.as_ref().map(path));
    if let Some(train) = &train {
        let train = open_beside(train, Some(&path(&case.file)), &options).map_err(|error| error.to_string());
        options = match train {
            Ok(train) => options.columns_of(train.as_ref()),
            Err(_) => options,
        };
    }
    let opened = open_beside(&path(&case.file), train.as_deref().or(eval.as_deref()), &options);
    match (&case.expected, opened) {
        (Expected::Good { inputs, labels }, Ok(shard)) => {
            let (mut found, mut found_labels) = (Vec::new(), Vec::new());
            shard.read(&(0..shard.len()).collect::<Vec<_>>(), &mut found, &mut found_labels);
            let found: Vec<String> = found.iter().map(|value| format!("{:08x}", value.to_bits())).collect();
            let wanted: Vec<String> = inputs.iter().flatten().map(|value| format!("{:08x}", value.bits())).collect();
            let agrees = found == wanted && found_labels == *labels && shard.input_shape() == [inputs[0].len() as u64];
            if agrees { Ok(()) } else { Err(format!("read {found:?} and {found_labels:?}")) }
        }
        (Expected::Refused { refused, line }, Err(error)) => {
            let text = error.to_string();
            let place = line.map_or_else(|| case.file.clone(), |line| format!("{}, line {line}: ", case.file));
            if text.contains(refused) && text.contains(&place) { Ok(()) } else { Err(format!("refused: {text}")) }
        }
        (_, outcome) => Err(format!("gave {outcome:?}")),
    }
}

#[test]
fn every_case_is_read_or_refused_as_the_python_reader_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shards");
    let text = fs::read_to_string(folder.join("cases.json")).expect("is there");
    let cases: Vec<Case> = serde_json::from_str(&text).expect("well formed");
    let wrong: Vec<String> =
        cases.iter().filter_map(|case| run(&folder, case).err().map(|wrong| format!("{case:?}: {wrong}"))).collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
