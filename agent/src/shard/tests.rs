//! Reading, inspecting and splitting real files in a temporary directory.

#![expect(clippy::cast_possible_truncation, reason = "made-up data are small")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;

use anabranch_common::limits;
use anabranch_common::rng::SplitMix64;
use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use super::*;

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn put(directory: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, bytes).expect("writes");
    path
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("writes to memory");
    encoder.finish().expect("writes to memory")
}

fn idx_bytes(extents: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, extents.len() as u8];
    extents.iter().for_each(|extent| bytes.extend(extent.to_be_bytes()));
    bytes.extend(values);
    bytes
}

fn refusal(path: &Path, options: &ShardOptions) -> String {
    open(path, options).expect_err("a bad shard is refused").to_string()
}

fn everything(shard: &dyn Shard) -> (Vec<f32>, Vec<u32>) {
    let (mut inputs, mut labels) = (Vec::new(), Vec::new());
    shard.read(&(0..shard.len()).collect::<Vec<_>>(), &mut inputs, &mut labels);
    (inputs, labels)
}

#[test]
fn csv_is_read_plain_and_compressed_with_the_label_anywhere() {
    let dir = directory();
    let text = "\u{feff}a, label ,b\r\n1,0, 2.5\r\n-3,2,4e1\r\n";
    let plain = put(&dir, "x.csv", text);
    let compressed = put(&dir, "y.csv.gz", gzip(text.as_bytes()));
    for path in [plain, compressed] {
        let shard = open(&path, &ShardOptions::default()).expect("good");
        assert_eq!(everything(shard.as_ref()), (vec![1.0, 2.5, -3.0, 40.0], vec![0, 2]));
        assert_eq!((shard.input_shape(), shard.classes()), (&[2u64][..], 3));
    }
}

#[test]
fn whole_numbers_to_255_stay_bytes_and_turn_to_floats_when_they_must() {
    let dir = directory();
    let bytes = put(&dir, "bytes.csv", "a,label\n0,0\n255,1\n");
    let read = csv::read(&bytes, &ShardOptions::default()).expect("good");
    assert_eq!(read.inputs(), &Inputs::Bytes(vec![0, 255]));
    for late in ["256", "0.5", "-1", "-0"] {
        let floats = put(&dir, "floats.csv", format!("a,label\n7,0\n{late},1\n"));
        let read = csv::read(&floats, &ShardOptions::default()).expect("good");
        assert_eq!(read.inputs(), &Inputs::Floats(vec![7.0, late.parse().expect("a number")]));
    }
}

#[test]
fn bad_csv_is_refused_with_its_line() {
    let dir = directory();
    let options = ShardOptions { classes: Some(3), input: Some(vec![2]), ..ShardOptions::default() };
    for (text, expected) in [
        ("", "x.csv holds no examples"),
        ("a,b,label\n", "x.csv holds no examples"),
        ("a,b,label\n1,2,0\n1,2\n", "x.csv, line 3: 2 columns, expected 3 as in the header"),
        ("a,b,label\n1,oops,0\n", "x.csv, line 2: column 2 holds \"oops\", expected a finite number"),
        ("a,b,label\n\n1,inf,0\n", "x.csv, line 3: column 2 holds \"inf\", expected a finite number"),
        ("a,b,label\r\n1,2,0\r\n\r\n1,inf,0\r\n1,2,0\r\n", "x.csv, line 4: column 2 holds \"inf\""),
        ("a,b,label\n\n1,inf,0", "x.csv, line 3: column 2 holds \"inf\""),
        ("a,b,label\n1,2,-1\n", "x.csv, line 2: label \"-1\" is not a whole number from 0"),
        (
            "a,b,label\n1,2,0\n1,2,3\n",
            "line 3: label 3 is out of range, `model.classes` in run.toml is 3 (labels 0 to 2)",
        ),
        ("a,b,target\n1,2,0\n", "x.csv has no column \"label\"; its columns are a, b, target"),
        ("0,1,2\n1,2,0\n", "x.csv, line 1: the first line holds numbers, expected a header row with column names"),
        ("label\n1\n", "line 1: there is no column beside the label"),
        ("a,label,label\n1,1,1\n", "line 1: two columns are called \"label\""),
        ("a,label\n1,0\n", "holds examples of shape [1], but `model.input` in run.toml is [2]"),
    ] {
        let path = put(&dir, "x.csv", text);
        let found = refusal(&path, &options);
        assert!(found.contains(expected), "{text:?} gave {found:?}");
    }
}

#[test]
fn another_label_column_can_be_named() {
    let dir = directory();
    let path = put(&dir, "x.csv", "class,a\n4,1\n");
    let shard = open(&path, &ShardOptions::default().label_column("class")).expect("good");
    assert_eq!(everything(shard.as_ref()), (vec![1.0], vec![4]));
}

#[test]
fn endless_lines_and_damaged_compression_are_refused_with_bounded_memory() {
    let dir = directory();
    // A hundred megabytes of one line in a hundred kilobytes of file.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(b"a,label\n").expect("writes to memory");
    for _ in 0..100 {
        encoder.write_all(&vec![b'1'; 1 << 20]).expect("writes to memory");
    }
    let bomb = put(&dir, "bomb.csv.gz", encoder.finish().expect("writes to memory"));
    let found = refusal(&bomb, &ShardOptions::default());
    assert!(found.contains(&format!("a line has more than {} bytes", limits::SHARD_LINE_BYTES)), "{found}");

    let whole = gzip(format!("a,label\n{}", "1,0\n".repeat(5000)).as_bytes());
    let cut = put(&dir, "cut.csv.gz", &whole[..whole.len() - 10]);
    let found = refusal(&cut, &ShardOptions::default());
    assert!(found.contains("cut.csv.gz, byte ") && found.contains("damaged or cut off"), "{found}");
}

#[test]
fn idx_is_found_from_a_directory_or_its_images() {
    let dir = directory();
    put(&dir, "train-labels-idx1-ubyte", idx_bytes(&[3], &[1, 0, 4]));
    let images = put(&dir, "train-images-idx3-ubyte.gz", gzip(&idx_bytes(&[3, 1, 2], &[1, 2, 3, 4, 5, 255])));
    put(&dir, "t10k-labels-idx1-ubyte.gz", gzip(&idx_bytes(&[1], &[9])));
    let test = put(&dir, "t10k-images-idx3-ubyte.gz", gzip(&idx_bytes(&[1, 1, 2], &[7, 7])));
    let options = ShardOptions { classes: Some(10), input: Some(vec![1, 1, 2]), ..ShardOptions::default() };
    for path in [dir.path(), &images] {
        let shard = open(path, &options).expect("good");
        assert_eq!(everything(shard.as_ref()), (vec![1.0, 2.0, 3.0, 4.0, 5.0, 255.0], vec![1, 0, 4]));
    }
    assert_eq!(open(&test, &options).expect("good").len(), 1);
}

#[test]
fn hidden_images_beside_a_shard_are_passed_over() {
    let dir = directory();
    put(&dir, "train-images-idx3-ubyte", idx_bytes(&[1, 1, 1], &[7]));
    put(&dir, "train-labels-idx1-ubyte", idx_bytes(&[1], &[2]));
    put(&dir, "._train-images-idx3-ubyte", "Mac OS X");
    put(&dir, "._train-labels-idx1-ubyte", "Mac OS X");
    put(&dir, "._t10k-images-idx3-ubyte", "Mac OS X");
    let shard = open(dir.path(), &ShardOptions::default()).expect("good");
    assert_eq!(everything(shard.as_ref()), (vec![7.0], vec![2]));
    let report = split(
        dir.path(),
        &dir.path().join("out"),
        &SplitOptions { min_examples: 1, ..SplitOptions::new(1, Skew::Iid, 1) },
    );
    assert_eq!(report.expect("splits").eval, None);
}

#[test]
fn bad_idx_is_refused_with_its_offset() {
    let dir = directory();
    let images = dir.path().join("train-images-idx3-ubyte");
    let good_labels = idx_bytes(&[2], &[0, 5]);
    for (image_bytes, label_bytes, expected) in [
        (idx_bytes(&[2, 1, 2], &[0; 4]), idx_bytes(&[1], &[0]), "byte 4: holds 1 labels for the 2 images"),
        (idx_bytes(&[2, 1, 2], &[0; 3]), good_labels.clone(), "byte 19: the file ends within its values"),
        (idx_bytes(&[2, 1, 2], &[0; 5]), good_labels.clone(), "byte 20: more bytes follow"),
        (vec![0, 0, 8], good_labels.clone(), "byte 3: the file ends within its header"),
        (b"PNG.....".to_vec(), good_labels.clone(), "byte 0: starts with"),
        (idx_bytes(&[2, 0, 2], &[]), good_labels.clone(), "byte 8: holds images without pixels"),
        (idx_bytes(&[u32::MAX; 3], &[]), good_labels.clone(), "is too large"),
        (idx_bytes(&[1 << 28, 1, 2], &[0; 9]), good_labels.clone(), "byte 25: the file ends within its values"),
        (idx_bytes(&[0, 1, 2], &[]), idx_bytes(&[0], &[]), "holds no examples"),
        (idx_bytes(&[2, 1, 2], &[0; 4]), good_labels, "byte 9: label 5 is out of range"),
    ] {
        fs::write(&images, image_bytes).expect("writes");
        put(&dir, "train-labels-idx1-ubyte", label_bytes);
        let found = refusal(&images, &ShardOptions { classes: Some(5), ..ShardOptions::default() });
        assert!(found.contains(expected), "{found:?} does not say {expected:?}");
    }
}

#[test]
fn what_is_not_there_is_said_in_words() {
    let dir = directory();
    let options = ShardOptions::default();
    assert!(refusal(&dir.path().join("gone"), &options).ends_with("gone does not exist"));
    assert!(refusal(dir.path(), &options).contains("holds no .csv, .csv.gz or IDX images file"));
    let other = put(&dir, "notes.pdf", "hello");
    assert!(refusal(&other, &options).contains("is neither a .csv"));
    let alone = put(&dir, "my-images.idx3-ubyte", idx_bytes(&[1, 1], &[0]));
    assert!(refusal(&alone, &options).contains("has no labels file beside it (my-labels.idx1-ubyte"));
    put(&dir, "a.csv", "a,label\n1,0\n");
    put(&dir, "b.csv", "a,label\n1,0\n");
    fs::remove_file(alone).expect("is there");
    assert!(refusal(dir.path(), &options).contains("holds several data sets (a.csv, b.csv): name one of them"));
}

#[test]
fn inspection_lists_problems_instead_of_stopping() {
    let dir = directory();
    let bad_rows = "9,x\n".repeat(12);
    let path = put(&dir, "x.csv", format!("a,label\n-1,0\n{bad_rows}3.5,2\n2,2\n"));
    let report = inspect(&path, &ShardOptions::default(), DEFAULT_CONTEXT).expect("can be looked at");
    assert_eq!((report.examples, report.problem_count, report.problems.len()), (3, 12, limits::SHARD_PROBLEMS_SHOWN));
    assert_eq!(report.labels, BTreeMap::from([(0, 1), (2, 2)]));
    assert_eq!(report.range, Some([-1.0, 3.5]));
    assert!(report.problems[0].contains("line 3: label \"x\""), "{:?}", report.problems[0]);
    assert!(!report.is_usable());
    let text = report.to_string();
    assert!(text.contains("labels    0: 1, 2: 2") && text.contains("and 2 more"), "{text}");
}

#[test]
fn features_are_read_by_the_names_of_the_training_shard() {
    let dir = directory();
    let train = put(&dir, "train.csv", "b,a,label\n1,2,0\n");
    let train = open(&train, &ShardOptions::default()).expect("good");
    let options = ShardOptions::default().columns_of(train.as_ref());
    let reordered = put(&dir, "eval.csv", "label,a,b\n3,2,1\n");
    let eval = open(&reordered, &options).expect("the same columns");
    assert_eq!(everything(eval.as_ref()), (vec![1.0, 2.0], vec![3]));
    let other = put(&dir, "other.csv", "c,a,label\n1,2,0\n");
    let told = "other.csv has other columns than the training shard: it lacks b and has c instead";
    assert!(refusal(&other, &options).ends_with(told), "{}", refusal(&other, &options));
}

#[test]
fn inspection_warns_of_a_row_index() {
    let dir = directory();
    let path = put(&dir, "x.csv", ",a,Unnamed: 0.1,label\n0,5,0,1\n");
    let inspected = |options: &ShardOptions| inspect(&path, options, DEFAULT_CONTEXT).expect("can be looked at");
    let report = inspected(&ShardOptions::default());
    assert!(report.is_usable());
    let shown = report.to_string();
    for part in ["warning   a column without a name is used", "--drop-column ''", "--drop-column 'Unnamed: 0.1'"] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    let dropped = ShardOptions::default().drop_columns(["".to_owned(), "Unnamed: 0.1".to_owned()]);
    let report = inspected(&dropped);
    assert_eq!((report.warnings.len(), report.input_shape, report.range), (0, vec![1], Some([5.0, 5.0])));
}

#[test]
fn a_split_leaves_dropped_columns_out() {
    let dir = directory();
    let path = put(&dir, "x.csv", "\n,\"a,\"\"b\"\"\", c ,label\n7,1, 2,0\n8,\"3\",4,1");
    let options =
        SplitOptions { drop_columns: vec![String::new()], min_examples: 2, ..SplitOptions::new(1, Skew::Iid, 1) };
    let report = split(&path, &dir.path().join("out"), &options).expect("splits");
    let part = fs::read_to_string(report.agents[0].path.join("x.csv")).expect("written");
    assert_eq!(part, "\"a,\"\"b\"\"\",c,label\n1,2,0\n3,4,1\n");
    let unknown = SplitOptions { drop_columns: vec!["z".to_owned()], ..options };
    let refused = split(&path, &dir.path().join("no"), &unknown).expect_err("refused").to_string();
    assert!(refused.contains("has no column \"z\" to drop; its columns are \"\", a,\"b\", c, label"), "{refused}");
}

/// The agent's other shard may have the column, which `inspect` does not see.
#[test]
fn inspection_warns_of_a_column_that_is_not_there_to_drop() {
    let dir = directory();
    let path = put(&dir, "x.csv", "a,label\n5,1\n");
    let options = ShardOptions::default().drop_columns(["z".to_owned()]);
    let report = inspect(&path, &options, DEFAULT_CONTEXT).expect("can be looked at");
    assert!(report.is_usable());
    assert_eq!(report.warnings, ["no column \"z\" to drop; the columns are a, label"]);
}

/// A shard without columns has none to drop, unless the agent's other shard has it.
#[test]
fn columns_are_dropped_from_csv_only() {
    let dir = directory();
    let csv = put(&dir, "x.csv", "a,b,label\n5,6,1\n");
    put(&dir, "labels-idx1-ubyte", idx_bytes(&[2], &[1, 0]));
    let images = put(&dir, "images-idx3-ubyte", idx_bytes(&[2, 1, 1], &[9, 8]));
    let text = put(&dir, "x.txt", "some text");
    let dropping = |name: &str| ShardOptions::default().drop_columns([name.to_owned()]);
    for (path, format) in [(&images, "IDX"), (&text, "text")] {
        let told = format!("{} is {format}, which has no column \"b\" to drop", path.display());
        assert_eq!(refusal(path, &dropping("b")), told);
        let inspected = inspect(path, &dropping("b"), DEFAULT_CONTEXT).expect_err("refused");
        assert_eq!(inspected.to_string(), told);
        let options = SplitOptions { drop_columns: vec!["b".to_owned()], ..SplitOptions::new(1, Skew::Iid, 1) };
        assert_eq!(split(path, &dir.path().join("out"), &options).expect_err("refused").to_string(), told);
        open_beside(path, Some(&csv), &dropping("b")).expect("the other shard has the column");
        open_beside(&csv, Some(path), &dropping("b")).expect("this shard has the column");
        let neither = open_beside(path, Some(&csv), &dropping("z")).expect_err("refused").to_string();
        assert!(
            neither.contains("x.csv has no column \"z\" to drop; its columns are a, b, label; nor has "),
            "{neither}"
        );
        assert!(neither.ends_with(&format!(", which is {format}")), "{neither}");
    }
}

/// Readers of a directory pass over hidden files.
#[test]
fn parts_of_a_hidden_file_are_not_hidden() {
    let dir = directory();
    let rows: String = (0..4).map(|row| format!("{row},{}\n", row % 2)).collect();
    put(&dir, ".labels-idx1-ubyte", idx_bytes(&[4], &[1, 0, 1, 0]));
    let hidden = [
        (put(&dir, ".x.csv", format!("a,label\n{rows}")), vec!["x.csv"]),
        (put(&dir, "..csv", format!("a,label\n{rows}")), vec!["part.csv"]),
        (put(&dir, ".csv.gz", gzip(format!("a,label\n{rows}").as_bytes())), vec!["part.csv.gz"]),
        (
            put(&dir, ".images-idx3-ubyte", idx_bytes(&[4, 1, 1], &[9, 8, 7, 6])),
            vec!["images-idx3-ubyte", "labels-idx1-ubyte"],
        ),
        (put(&dir, ".x.txt", "text"), vec!["x.txt"]),
    ];
    for (number, (path, names)) in hidden.iter().enumerate() {
        let out = dir.path().join(number.to_string());
        let options = SplitOptions { min_examples: 1, ..SplitOptions::new(1, Skew::Iid, 1) };
        let report = split(path, &out, &options).expect("splits");
        let part = &report.agents[0].path;
        let entries = fs::read_dir(part).expect("lists").map(|entry| entry.expect("an entry").file_name());
        let mut found: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        found.sort();
        assert_eq!(&found, names);
        open(part, &ShardOptions::default()).expect("a part is a shard");
    }
}

/// A CSV of `rows` distinct rows over four labels.
fn data_set(dir: &TempDir, rows: usize) -> PathBuf {
    let lines: String = (0..rows).map(|row| format!("{row},{},{}\n", row as f64 / 8.0, row % 4)).collect();
    put(dir, "data.csv.gz", gzip(format!("id,value,label\n{lines}").as_bytes()))
}

/// The lines of a part, without its header.
fn lines(part: &Path) -> Vec<String> {
    let file = fs::File::open(part.join("data.csv.gz")).expect("written");
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("gzip");
    let mut lines = text.lines().map(str::to_owned);
    assert_eq!(lines.next().as_deref(), Some("id,value,label"));
    lines.collect()
}

#[test]
fn a_split_is_a_partition_in_the_format_of_its_input() {
    let dir = directory();
    let path = data_set(&dir, 403);
    for (name, skew) in [("iid", Skew::Iid), ("mild", Skew::Alpha(1.0)), ("hard", Skew::Alpha(0.01))] {
        let out = dir.path().join(name);
        let options = SplitOptions { eval_rows: Some(41), ..SplitOptions::new(7, skew, 5) };
        let report = split(&path, &out, &options).expect("splits");
        let mut seen = lines(&out.join("eval"));
        assert_eq!((seen.len(), report.agents.len()), (41, 7));
        let held_out = &report.eval.as_ref().expect("held out").labels;
        assert!(held_out.values().all(|count| (10..=11).contains(count)), "not stratified: {held_out:?}");
        for part in &report.agents {
            let rows = lines(&part.path);
            assert_eq!(rows.len() as u64, part.examples);
            assert!(part.examples >= 10, "{name}: an agent has only {}", part.examples);
            let shard = open(&part.path, &ShardOptions::default()).expect("a part is a shard");
            assert_eq!(shard.len(), rows.len());
            seen.extend(rows);
        }
        let number = |line: &String| line.split(',').next().and_then(|id| id.parse::<usize>().ok());
        seen.sort_by_key(number);
        let expected: Vec<String> = (0..403).map(|row| format!("{row},{},{}", row as f64 / 8.0, row % 4)).collect();
        assert_eq!(seen, expected, "{name}: every row is in exactly one part, unchanged");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_does_not() {
    let dir = directory();
    let path = data_set(&dir, 200);
    let bytes = |name: &str, seed| {
        let out = dir.path().join(name);
        let report = split(&path, &out, &SplitOptions::new(3, Skew::Alpha(0.5), seed)).expect("splits");
        report.agents.iter().map(|part| fs::read(part.path.join("data.csv.gz")).expect("written")).collect::<Vec<_>>()
    };
    let first = bytes("first", 1);
    assert_eq!(first, bytes("again", 1));
    assert_ne!(first, bytes("other", 2));
}

/// Mean over agents of the share of an agent's most frequent label.
fn concentration(report: &SplitReport) -> f64 {
    let top = |part: &PartReport| part.labels.values().copied().max().unwrap_or(0) as f64 / part.examples as f64;
    report.agents.iter().map(top).sum::<f64>() / report.agents.len() as f64
}

#[test]
fn a_small_alpha_is_skewed_and_a_large_one_is_not() {
    let dir = directory();
    let path = data_set(&dir, 2000);
    let run = |name: &str, skew| {
        concentration(&split(&path, &dir.path().join(name), &SplitOptions::new(5, skew, 3)).expect("splits"))
    };
    let (hard, even, iid) = (run("hard", Skew::Alpha(0.05)), run("even", Skew::Alpha(1000.0)), run("iid", Skew::Iid));
    assert!(hard > 0.6, "alpha 0.05 gives {hard}");
    assert!(even < 0.35 && iid < 0.35, "alpha 1000 gives {even}, iid {iid}");
}

#[test]
fn an_idx_set_with_a_test_part_is_split_with_its_eval() {
    let dir = directory();
    let mut rng = SplitMix64::new(2);
    let pixels: Vec<u8> = (0..60 * 4).map(|_| rng.below(256) as u8).collect();
    let labels: Vec<u8> = (0..60).map(|index| index % 3).collect();
    put(&dir, "train-images-idx3-ubyte.gz", gzip(&idx_bytes(&[60, 2, 2], &pixels)));
    put(&dir, "train-labels-idx1-ubyte.gz", gzip(&idx_bytes(&[60], &labels)));
    put(&dir, "t10k-images-idx3-ubyte", idx_bytes(&[2, 2, 2], &[9; 8]));
    put(&dir, "t10k-labels-idx1-ubyte", idx_bytes(&[2], &[2, 0]));
    let out = dir.path().join("out");
    let report = split(dir.path(), &out, &SplitOptions::new(2, Skew::Alpha(0.3), 1)).expect("splits");
    let eval = open(&out.join("eval"), &ShardOptions::default()).expect("a shard");
    assert_eq!(everything(eval.as_ref()), (vec![9.0; 8], vec![2, 0]));
    let mut rows = Vec::new();
    for part in &report.agents {
        let shard = open(&part.path, &ShardOptions::default()).expect("a shard");
        assert_eq!(shard.input_shape(), [2, 2]);
        let (inputs, labels) = everything(shard.as_ref());
        rows.extend(
            inputs.chunks(4).zip(labels).map(|(row, label)| (row.iter().map(|v| *v as u8).collect::<Vec<_>>(), label)),
        );
    }
    let mut expected: Vec<_> = pixels.chunks(4).map(<[u8]>::to_vec).zip(labels.iter().map(|l| u32::from(*l))).collect();
    rows.sort();
    expected.sort();
    assert_eq!(rows, expected);
}

#[test]
fn a_split_refuses_what_it_cannot_do_and_leaves_nothing_behind() {
    let dir = directory();
    let path = data_set(&dir, 50);
    let out = dir.path().join("out");
    let refused = |options: &SplitOptions| split(&path, &out, options).expect_err("refused").to_string();
    assert!(refused(&SplitOptions::new(6, Skew::Iid, 1)).contains("too few for 6 agents with at least 10 each"));
    assert!(refused(&SplitOptions::new(0, Skew::Iid, 1)).contains("0 agents"));
    assert!(refused(&SplitOptions::new(2, Skew::Alpha(0.0), 1)).contains("alpha is 0"));
    assert!(!out.exists());
    fs::create_dir(&out).expect("creates");
    split(&path, &out, &SplitOptions::new(2, Skew::Iid, 1)).expect("an empty directory is fine");
    let again = split(&path, &out, &SplitOptions::new(2, Skew::Iid, 1)).expect_err("refused");
    assert!(matches!(again, ShardError::NotEmpty { .. }), "{again:?}");
    assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 2, "the data set and the split, nothing partial");
}
