//! A child that computes parts of its model.

use super::*;
use crate::train::{ModulePart, ModulePass, ModuleRound};

/// A model of two modules, each a number by which its input is multiplied; the loss is the mean of the outputs. `misbehave` is called
/// for every request, and may answer it: then it returns true.
const STAGED: &str = r#"
import json, os, struct, sys

def say(**answer):
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()

def read(name):
    with open(os.path.join(hello["dir"], name), "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        data = file.read()
    (name, about), = header.items()
    return name, about["shape"], list(struct.unpack(f"<{len(data) // 4}f", data))

def write(file, name, shape, values):
    header = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * len(values)]}}).encode()
    with open(os.path.join(hello["dir"], file), "wb") as out:
        out.write(struct.pack("<Q", len(header)) + header + struct.pack(f"<{len(values)}f", *values))

def misbehave(request):
    return False

MISBEHAVE
hello = json.loads(sys.stdin.readline())
say(type="hello", protocol=1, name="two modules", train_examples=0, eval_examples=0, stages=True)
weights, inputs, parts = {}, {}, []
for line in sys.stdin:
    request = json.loads(line)
    id, kind, part = request.get("id"), request["type"], request.get("part")
    if misbehave(request):
        continue
    if kind == "prepare":
        say(type="prepared", id=id, tensors=[{"name": "a", "shape": []}, {"name": "b", "shape": []}], modules=[1, 1])
    elif kind == "stages":
        parts = request["parts"]
        say(type="stages", id=id)
    elif kind == "weights":
        name, shape, (weights[part],) = read(request["weights"])
        assert name == "ab"[part] and shape == []
        say(type="weights", id=id)
    elif kind == "forward":
        if part == 0:
            inputs[0] = [float(example + 1) for example in range(request["examples"])]
            write(request["out"], "activations", [len(inputs[0]), 1], [x * weights[0] for x in inputs[0]])
            say(type="forward", id=id)
        else:
            name, shape, inputs[1] = read(request["input"])
            assert name == "activations" and shape == [request["examples"], 1]
            say(type="forward", id=id, loss=sum(x * weights[1] for x in inputs[1]) / len(inputs[1]))
    elif kind == "backward":
        xs = inputs[part]
        slopes = read(request["slope"])[2] if part == 0 else [1 / len(xs)] * len(xs)
        write(request["out"], "ab"[part], [], [sum(x * slope for x, slope in zip(xs, slopes))])
        if part == 1:
            write(request["of_input"], "activations", [len(xs), 1], [slope * weights[1] for slope in slopes])
        say(type="backward", id=id)
    elif kind == "exit":
        break
"#;

/// A child with two modules.
fn staged(misbehave: &str) -> (Home, TrainerProcess) {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("trainer.py"), STAGED.replace("MISBEHAVE", misbehave)).expect("written");
    let home = Home { dir };
    let process = home.start();
    (home, process)
}

fn run_of(modules: &str) -> RunPart {
    let model = toml::from_str(&format!("kind = \"custom\"\nmodules = [{modules}]")).expect("complete");
    RunPart { model, ..RunPart::of(&spec()) }
}

const TWO: &str = "{ parameters = 1, output = [1] }, { parameters = 1, output = [1] }";

fn round_of_two(parts: Vec<ModulePart>) -> ModuleRound<'static> {
    ModuleRound { number: 81, parts, draw: None }
}

fn part(part: usize) -> ModulePart {
    ModulePart { part, modules: part..part + 1 }
}

fn pass(part: usize) -> ModulePass {
    ModulePass { part, micro_batch: 0, examples: 3 }
}

#[test]
fn a_child_computes_the_parts_of_its_model_pass_by_pass() {
    let (_home, process) = staged("");
    assert!(process.hello().stages && process.shards().train.is_none(), "it has no examples, and helps");
    let trainer = process.factory()(&run_of(TWO)).expect("it can be prepared");
    let modules = trainer.modules().expect("it computes parts");
    modules.begin(&round_of_two(vec![part(0), part(1)])).expect("begun");
    modules.load(0, &[2.0]).expect("loaded");
    modules.load(1, &[5.0]).expect("loaded");
    let first = modules.forward(pass(0), None).expect("forwarded");
    assert_eq!((first.output.as_slice(), first.mean_loss), (&[2.0, 4.0, 6.0][..], 0.0));
    let last = modules.forward(pass(1), Some(&first.output)).expect("forwarded");
    assert_eq!((last.output.len(), last.mean_loss), (0, 20.0));
    let last = modules.backward(pass(1), None).expect("backward");
    assert!((last.gradient[0] - 4.0).abs() < 1e-6, "{last:?}");
    let first = modules.backward(pass(0), Some(&last.of_input)).expect("backward");
    assert!((first.gradient[0] - 10.0).abs() < 1e-5 && first.of_input.is_empty(), "{first:?}");
    // The owner of a round sees by the loss that it diverges: what is not finite is passed on.
    modules.load(0, &[f32::INFINITY]).expect("loaded");
    assert!(modules.forward(pass(0), None).expect("forwarded").output.iter().all(|value| value.is_infinite()));
    // What is of another length than its part never reaches the child.
    let problem = modules.load(0, &[1.0, 2.0]).expect_err("too many").to_string();
    assert!(problem.contains("2 values") && problem.contains('1'), "{problem}");
    assert!(matches!(modules.load(2, &[1.0]), Err(TrainError::Lost(_))), "no such part was begun");
    let scratch = lock(&process.host).scratch.path().to_owned();
    assert_eq!(fs::read_dir(scratch).expect("listed").count(), 0, "files go when they have been used");
    process.close();
}

#[test]
fn a_child_that_dies_between_passes_is_lost_with_its_round() {
    let die = "def misbehave(request):\n    if request['type'] == 'backward': os._exit(9)\n    return False\n";
    let (_home, process) = staged(die);
    let trainer = process.factory()(&run_of(TWO)).expect("it can be prepared");
    let modules = trainer.modules().expect("it computes parts");
    let begin = || modules.begin(&round_of_two(vec![part(1)]));
    begin().expect("begun");
    modules.load(1, &[5.0]).expect("loaded");
    modules.forward(pass(1), Some(&[1.0, 2.0, 3.0])).expect("forwarded");
    let lost = modules.backward(pass(1), None).expect_err("it is gone").to_string();
    assert!(lost.contains("exit code 9"), "{lost}");
    let again = modules.forward(pass(1), Some(&[1.0, 2.0, 3.0])).expect_err("a fresh child knows nothing");
    assert!(matches!(&again, TrainError::Lost(_)), "{again:?}");
    begin().expect("a fresh child takes the round from its start");
    modules.load(1, &[5.0]).expect("loaded");
    process.close();
}

#[test]
fn answers_that_do_not_fit_are_errors_with_the_reason() {
    for (misbehave, expected) in [
        ("say(type='forward', id=request['id'])", "is no answer to what was asked"),
        ("say(type='forward', id=request['id'], loss=1, out='x') if request['part'] == 0 else None", "is no answer"),
        ("say(type='failed', id=request['id'], kind='memory', message='too large')", "too large"),
    ] {
        let part_of = if misbehave.contains("part") { 0 } else { 1 };
        let body = format!(
            "def misbehave(request):\n    if request['type'] != 'forward': return False\n    {misbehave}\n    return True\n"
        );
        let (_home, process) = staged(&body);
        let trainer = process.factory()(&run_of(TWO)).expect("it can be prepared");
        let modules = trainer.modules().expect("it computes parts");
        modules.begin(&round_of_two(vec![part(part_of)])).expect("begun");
        modules.load(part_of, &[2.0]).expect("loaded");
        let input = [1.0, 2.0, 3.0];
        let error =
            modules.forward(pass(part_of), (part_of > 0).then_some(&input[..])).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
        process.close();
    }
}

#[test]
fn a_table_that_is_not_the_trainers_is_refused_by_row() {
    let (_home, process) = staged("");
    let told = |modules: &str| process.factory()(&run_of(modules)).expect_err("refused").to_string();
    let row = told("{ parameters = 1, output = [1] }, { parameters = 7, output = [1] }");
    assert!(row.contains("`model.modules` is parameters = 7 in row 1, expected parameters = 1 there"), "{row}");
    let short = told("{ parameters = 2, output = [1] }");
    assert!(short.contains("a table of 1 rows, expected 2"), "{short}");
    let without = process.factory()(&run_of("")).expect("a run without pods needs no table");
    assert!(without.modules().is_none());
    process.close();
}
