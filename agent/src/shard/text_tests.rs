//! Text: reading, inspecting and splitting real folders.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use super::*;

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn put(root: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = root.join(name);
    fs::create_dir_all(path.parent().expect("below a root")).expect("makes");
    fs::write(&path, bytes).expect("writes");
    path
}

fn open_text(path: &Path) -> Text {
    let shard = open(path, &ShardOptions::default()).expect("good");
    shard.text().expect("it is text").clone()
}

fn refusal(path: &Path) -> String {
    open(path, &ShardOptions::default()).expect_err("refused").to_string()
}

#[test]
fn a_folder_is_all_its_files_in_order_with_a_zero_between() {
    let dir = directory();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(b"packed").expect("writes to memory");
    put(dir.path(), "b.txt", b"second");
    put(dir.path(), "a/z.rs", b"first");
    put(dir.path(), "c.md.gz", &encoder.finish().expect("writes to memory"));
    put(dir.path(), "d", &[0xff, 0xfe]);
    put(dir.path(), "empty", b"");
    put(dir.path(), ".hidden", b"no");
    put(dir.path(), ".git/config", b"no");
    put(dir.path(), "a/._z.rs", b"no");
    put(dir.path(), "._rows.csv", b"no");
    std::os::unix::fs::symlink(dir.path(), dir.path().join("round")).expect("links");
    let text = open_text(dir.path());
    assert_eq!(text.bytes(), b"first\0second\0packed\0\xff\xfe");
    let files: Vec<(&str, u64)> = text.files().iter().map(|file| (file.name.as_str(), file.bytes)).collect();
    assert_eq!(files, [("a/z.rs", 5), ("b.txt", 6), ("c.md.gz", 6), ("d", 2)]);
    assert_eq!(open_text(&dir.path().join("b.txt")).bytes(), b"second", "one file is a shard too");
}

#[test]
fn windows_have_a_label_a_position_and_every_byte_but_the_first_is_one() {
    let text = Text::new(b"0123456789ab".to_vec()).expect("long enough");
    assert_eq!([1, 3, 4, 11, 12].map(|context| text.windows(context)), [11, 3, 2, 1, 0]);
    let (mut inputs, mut labels) = (vec![9.0], vec![9]);
    text.read_windows(3, &[2, 0], &mut inputs, &mut labels);
    assert_eq!(inputs, b"678012".map(f32::from));
    assert_eq!(labels, b"789123".map(u32::from));
    assert_eq!((text.len(), text.input_shape(), text.classes()), (1, &[11u64][..], 256));
    text.read(&[0], &mut inputs, &mut labels);
    assert_eq!((inputs.len(), labels.len()), (11, 11));
    let long = Text::new(vec![b'x'; 1_000]).expect("long enough");
    assert_eq!((long.len(), long.input_shape()), (3, &[DEFAULT_CONTEXT as u64][..]));
    assert!(Text::new(b"x".to_vec()).is_none(), "there is nothing to tell");
}

#[test]
fn folders_without_text_and_broken_files_are_refused_in_words() {
    let dir = directory();
    assert!(refusal(dir.path()).contains("holds no .csv, .csv.gz or IDX images file, and no text beside"));
    put(dir.path(), "one", b"x");
    assert!(refusal(dir.path()).ends_with("holds no examples"));
    put(dir.path(), "cut.txt.gz", &[0x1f, 0x8b, 8, 0]);
    let cut = refusal(dir.path());
    assert!(cut.contains("cut.txt.gz, byte 0") && cut.contains("damaged or cut off"), "{cut}");
    put(dir.path(), "train-labels-idx1-ubyte", &[0, 0, 8, 1]);
    assert!(refusal(dir.path()).contains("holds no .csv"), "labels without images are no text");
    put(dir.path(), "x.csv", b"a,label\n1,0\n");
    let shard = open(dir.path(), &ShardOptions::default()).expect("the data set beside it");
    assert!(shard.text().is_none());
}

#[test]
fn inspection_counts_files_bytes_and_windows() {
    let dir = directory();
    for index in 0..12 {
        put(dir.path(), &format!("{index:02}.txt"), &[b'x'; 99]);
    }
    let report = inspect(dir.path(), &ShardOptions::default(), 100).expect("can be looked at");
    assert_eq!((report.format, report.examples, report.is_usable()), ("text", 11, true));
    let shown = report.to_string();
    for line in ["files     12", "00.txt, 99 bytes", "and 2 more", "bytes     1199", "windows   11 of 100 bytes"] {
        assert!(shown.contains(line), "{line:?} is not in {shown}");
    }
    let short = inspect(dir.path(), &ShardOptions::default(), 1_199).expect("can be looked at");
    assert!(!short.is_usable());
    let problem = "holds 1199 bytes of text, too few for a window of 1199 and the byte after it";
    assert!(short.problems[0].contains(problem), "{:?}", short.problems);
}

#[test]
fn enough_files_are_dealt_out_whole_and_evenly() {
    let dir = directory();
    let source = dir.path().join("books");
    for index in 0..30u8 {
        put(&source, &format!("{}/{index:02}.txt", index % 3), &vec![b'a' + index % 26; 100 + 10 * usize::from(index)]);
    }
    let run = |name: &str, seed| {
        let report = split(&source, &dir.path().join(name), &SplitOptions::new(4, Skew::Iid, seed)).expect("splits");
        report.agents.iter().map(|part| open_text(&part.path)).collect::<Vec<_>>()
    };
    let parts = run("out", 1);
    let mut files: Vec<(String, u64)> =
        parts.iter().flat_map(Text::files).map(|file| (file.name.clone(), file.bytes)).collect();
    files.sort();
    let expected: Vec<(String, u64)> =
        open_text(&source).files().iter().map(|file| (file.name.clone(), file.bytes)).collect();
    assert_eq!(files, expected, "every file is in exactly one part");
    let sizes: Vec<usize> = parts.iter().map(|part| part.bytes().len()).collect();
    let (least, most) = (sizes.iter().min().expect("parts"), sizes.iter().max().expect("parts"));
    assert!(most - least <= 400, "{sizes:?} differ by more than a file");
    let bytes = |parts: &[Text]| parts.iter().map(|part| part.bytes().to_vec()).collect::<Vec<_>>();
    assert_eq!(bytes(&parts), bytes(&run("again", 1)));
    assert_ne!(bytes(&parts), bytes(&run("other", 2)));
}

#[test]
fn a_few_files_are_cut_into_stretches() {
    let dir = directory();
    let all: Vec<u8> = (0..1_000u32).map(|index| b'a' + u8::try_from(index % 26).expect("a letter")).collect();
    let source = put(dir.path(), "book.txt", &all);
    let report = split(&source, &dir.path().join("out"), &SplitOptions::new(3, Skew::Iid, 1)).expect("splits");
    assert!(report.to_string().contains("bytes of text in 1 files"), "{report}");
    let parts: Vec<Vec<u8>> = report.agents.iter().map(|part| open_text(&part.path).bytes().to_vec()).collect();
    assert!(parts.iter().all(|part| (333..=334).contains(&part.len())), "{:?}", parts.iter().map(Vec::len));
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let whole = orders.iter().any(|order| order.iter().flat_map(|part| &parts[*part]).eq(&all));
    assert!(whole, "the stretches do not make up the text");
    let refused =
        |options: SplitOptions| split(&source, &dir.path().join("no"), &options).expect_err("refused").to_string();
    assert!(refused(SplitOptions::new(3, Skew::Alpha(0.5), 1)).contains("text has no labels"));
    let held_out = SplitOptions { eval_rows: Some(10), ..SplitOptions::new(3, Skew::Iid, 1) };
    assert!(refused(held_out).contains("text has no rows to keep apart"));
    assert!(refused(SplitOptions::new(101, Skew::Iid, 1)).contains("1000 bytes, too few for 101 agents"));
    assert!(!dir.path().join("no").exists());
}
