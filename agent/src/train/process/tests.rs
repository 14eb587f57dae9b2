//! Real child processes: shell and Python, as users write them.

use std::path::Path;
use std::process::Command;

use anabranch_common::spec::AgentSpec;

use super::*;

mod modules;

/// A trainer in Python without any library: a model of two numbers, which each step moves by 1. `misbehave` is called
/// for every request with the name of the request and what was asked.
const TRAINER: &str = r#"
import json, os, struct, sys, time

def say(**answer):
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()

def ask():
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return json.loads(line)

def read(name):
    with open(os.path.join(hello["dir"], name), "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        file.read(size)
        return list(struct.unpack("<2f", file.read(8)))

def write(name, values):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    with open(os.path.join(hello["dir"], name), "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + struct.pack("<2f", *values))

def misbehave(request):
    pass

MISBEHAVE
hello = ask()
misbehave(hello)
say(type="hello", protocol=1, name="two numbers", train_examples=7, eval_examples=3)
while True:
    request = ask()
    misbehave(request)
    id, kind = request.get("id"), request["type"]
    if kind == "prepare":
        say(type="prepared", id=id, tensors=[{"name": "w", "shape": [2]}])
    elif kind == "initial":
        write(request["out"], [0.5, -0.5])
        say(type="initial", id=id)
    elif kind == "train":
        steps = request["plan"]["local_steps"]
        for step in range(1, steps + 1):
            say(type="step", id=id, step=step, examples=4 * step, loss=1.0 / step)
        write(request["out"], [value + steps for value in read(request["base"])])
        say(type="trained", id=id, steps=steps, num_examples=4 * steps, mean_loss=0.5, stopped=False)
    elif kind == "evaluate":
        say(type="evaluated", id=id, accuracy=0.25, loss=sum(read(request["model"])), num_examples=3)
    elif kind == "exit":
        break
"#;

/// A home for an agent with such a trainer in it.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new(misbehave: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("trainer.py"), TRAINER.replace("MISBEHAVE", misbehave)).expect("written");
        Self { dir }
    }

    fn options(&self) -> ProcessOptions {
        ProcessOptions {
            command: vec!["python3".into(), "trainer.py".into()],
            work_dir: Some(self.dir.path().to_owned()),
            home: self.dir.path().to_owned(),
            agent: "north".to_owned(),
            shard: Some("data".into()),
            eval_shard: None,
            threads: Some(2),
            max_memory_bytes: Some(1 << 30),
            patience: Duration::from_secs(60),
        }
    }

    fn start(&self) -> TrainerProcess {
        TrainerProcess::start(self.options()).expect("it starts")
    }

    fn refusal(&self) -> String {
        refusal(self.options())
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Why a trainer cannot be used, with all causes.
fn refusal(options: ProcessOptions) -> String {
    format!("{:#}", anyhow::Error::new(TrainerProcess::start(options).expect_err("it cannot be used")))
}

fn spec() -> AgentSpec {
    AgentSpec::from_toml(crate::session::SPEC_FOR_TESTS).expect("a complete spec")
}

fn prepared(process: &TrainerProcess) -> Box<dyn Trainer> {
    process.factory()(&RunPart::of(&spec())).expect("it can be prepared")
}

fn go_on(_: StepReport) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn train(trainer: &mut dyn Trainer, process: &TrainerProcess) -> Result<RoundResult, TrainError> {
    let shards = process.shards();
    let shard = shards.train.as_deref().expect("it trains");
    trainer.train(Round::new(&[1.0, 2.0], &spec().train, 9, shard, &mut go_on))
}

/// What a request of each kind gives, and that files go when they have been used.
#[test]
fn a_program_in_another_language_is_a_trainer() {
    let home = Home::new("");
    let process = home.start();
    let shards = process.shards();
    assert_eq!(shards.train.as_deref().map(Shard::len), Some(7));
    assert_eq!(shards.eval.as_deref().map(Shard::len), Some(3));
    let mut trainer = prepared(&process);
    assert_eq!(trainer.manifest().params(), 2);
    assert_eq!(trainer.initial(1), Ok(vec![0.5, -0.5]));
    let plan = spec().train;
    let mut told = Vec::new();
    let mut control = |report: StepReport| {
        told.extend((report.examples > 0).then_some((report.step, report.examples)));
        ControlFlow::Continue(())
    };
    let shard = shards.train.as_deref().expect("it trains");
    let outcome = trainer.train(Round::new(&[1.0, 2.0], &plan, 9, shard, &mut control)).expect("trained");
    let steps = plan.local_steps;
    assert_eq!(outcome.end, [1.0 + steps as f32, 2.0 + steps as f32]);
    assert_eq!((outcome.steps, outcome.num_examples), (steps, 4 * u64::from(steps)));
    assert_eq!(told, (1..=steps).map(|step| (step, 4)).collect::<Vec<_>>());
    let metrics = trainer.evaluate(&[0.25, 0.5], shard).expect("evaluated");
    assert_eq!((metrics.accuracy, metrics.loss, metrics.num_examples), (0.25, 0.75, 3));
    let scratch = lock(&process.host).scratch.path().to_owned();
    assert_eq!(fs::read_dir(&scratch).expect("there").count(), 0, "used files are gone");
    process.close();
    drop((process, trainer));
    assert!(!scratch.exists());
}

/// The trainer of a user who mistyped a key: the evaluation fails and names it, and the process lives on.
#[test]
fn an_evaluation_with_unknown_keys_fails_and_the_child_lives_on() {
    let body = "def misbehave(request):\n    if request['type'] == 'evaluate':\n        \
                say(type='evaluated', id=request['id'], acc=0.97, loss=0.1, num_examples=3); request['type'] = ''\n";
    let home = Home::new(body);
    let process = TrainerProcess::start(home.options()).expect("it starts");
    let mut trainer = prepared(&process);
    let pid = |process: &TrainerProcess| lock(&process.host).child.as_ref().map(|living| living.child.pid());
    let before = pid(&process);
    let shards = process.shards();
    let shard = shards.eval.as_deref().expect("it evaluates");
    let told = "its `evaluated` has unknown `acc`, no `accuracy` (0 where accuracy has no meaning)".to_owned();
    assert_eq!(trainer.evaluate(&[0.25, 0.5], shard), Err(TrainError::Failed(told)));
    train(&mut *trainer, &process).expect("a round");
    assert_eq!(pid(&process), before, "it is the same child");
}

/// Guards the promise of the document: whatever a child does, a round is lost and the next one works.
#[test]
fn a_child_that_dies_hangs_or_talks_nonsense_costs_one_round() {
    let once = |body: &str| {
        format!(
            "def misbehave(request):\n    if request['type'] == 'train' and not os.path.exists('done'):\n        open('done', 'w').close()\n        {body}\n"
        )
    };
    for (body, part) in [
        ("os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("print('no such column: age', file=sys.stderr); sys.exit(3)", "exit code 3; its last words: no such column"),
        ("raise RuntimeError('CUDA error: an illegal memory access')", "its last words: RuntimeError: CUDA error"),
        ("print('epoch 1 of 3')", "\"epoch 1 of 3\" is no message"),
        ("sys.stdout.write('x' * (1 << 20) + '\\n')", "a line of more than 1048576 bytes"),
        ("time.sleep(600)", "no step for 1 s"),
        (
            "say(type='evaluated', id=request['id'], accuracy=1, loss=0, num_examples=1)",
            "is no answer to what was asked",
        ),
        ("say(type='trained', id=99, steps=1, num_examples=1, mean_loss=0, stopped=False)", "request 2 is open"),
        (
            "say(type='trained', id=request['id'], steps=1, num_examples=4, mean_loss=0, stopped=False); request['type'] = ''",
            "cannot read",
        ),
        (
            "write(request['out'], [0, 0]); say(type='trained', id=request['id'], steps=10**6, num_examples=4, mean_loss=0, stopped=False)",
            "is no answer",
        ),
    ] {
        let home = Home::new(&once(body));
        let mut options = home.options();
        options.patience = Duration::from_secs(if part.contains("no step") { 1 } else { 60 });
        let process = TrainerProcess::start(options).expect("it starts");
        let mut trainer = prepared(&process);
        match train(&mut *trainer, &process) {
            Err(TrainError::Lost(told) | TrainError::OutOfMemory(told)) => {
                assert!(told.contains(part), "{body}: {told:?} does not say {part:?}");
            }
            other => panic!("{body}: {other:?}"),
        }
        let outcome = train(&mut *trainer, &process).expect("a fresh child");
        assert_eq!(outcome.end[0], 1.0 + spec().train.local_steps as f32, "{body}");
    }
}

/// What the out-of-memory killer does to a child, what allocators say before they abort, and what a framework tells:
/// each time the next round is told to compute half as many examples at once, down to one. After 16 rounds that fit
/// twice as many are tried.
#[test]
fn a_round_that_ran_out_of_memory_is_followed_by_one_with_half_the_micro_batch() {
    let noting = "def misbehave(request):
    if request['type'] == 'train':
        open('told', 'a').write(str(request.get('max_micro_batch')) + ' ')
        rounds = len(open('told').read().split())
        if rounds == 1:
            say(type='step', id=request['id'], step=0, examples=0, loss=0, micro_batch=12)
            os.kill(os.getpid(), 9)
        if rounds == 2:
            sys.exit('memory allocation of 4096 bytes failed')
        if rounds < 6:
            say(type='failed', id=request['id'], kind='memory', message='no GPU memory'); request['type'] = ''
";
    let home = Home::new(noting);
    let process = home.start();
    let mut trainer = prepared(&process);
    for round in 1..6 {
        let error = train(&mut *trainer, &process).expect_err("no memory");
        assert!(matches!(&error, TrainError::OutOfMemory(_)) && error.is_passing(), "{round}: {error:?}");
    }
    for _ in 0..17 {
        train(&mut *trainer, &process).expect("it fits");
    }
    let told = format!("None 6 3 1 1 {}2 ", "1 ".repeat(16));
    assert_eq!(fs::read_to_string(home.path().join("told")).expect("written"), told);
}

/// A causal mask of minus infinity in the first model is no divergence: nothing has trained yet.
#[test]
fn an_initial_model_that_is_not_finite_is_told_with_its_tensor() {
    let infinite = "def misbehave(request):\n    if request['type'] == 'initial':\n        write(request['out'], [float('-inf'), 0])\n        say(type='initial', id=request['id']); request['type'] = ''\n";
    let home = Home::new(infinite);
    let process = home.start();
    let told = prepared(&process).initial(1).expect_err("not finite").to_string();
    assert_eq!(told, "the trainer failed: the initial model is unusable: tensor \"w\" is not finite");
}

/// `failed` leaves the child alive, and what is not finite is told as such.
#[test]
fn a_failure_that_is_told_leaves_the_child_alive() {
    let failing = "def misbehave(request):\n    if request['type'] == 'train':\n        say(type='failed', id=request['id'], kind=os.environ.get('KIND', 'error'), message='no GPU memory')\n";
    let home = Home::new(failing);
    let process = home.start();
    let mut trainer = prepared(&process);
    let pid = lock(&process.host).child.as_ref().map(|living| living.child.pid());
    assert_eq!(train(&mut *trainer, &process), Err(TrainError::Failed("no GPU memory".to_owned())));
    assert_eq!(lock(&process.host).child.as_ref().map(|living| living.child.pid()), pid);
    let nan = "def misbehave(request):\n    if request['type'] == 'train':\n        write(request['out'], [float('nan'), 0])\n        say(type='trained', id=request['id'], steps=1, num_examples=4, mean_loss=0, stopped=False); request['type'] = ''\n";
    let process = Home::new(nan);
    let process = process.start();
    let mut trainer = prepared(&process);
    let error = train(&mut *trainer, &process).expect_err("not finite");
    assert!(matches!(&error, TrainError::DivergedThere(_)) && error.is_passing(), "{error:?}");
}

/// Guards SIGTERM in a long step of somebody else's program.
#[test]
fn a_stop_is_heard_between_steps_and_one_that_is_not_heeded_kills() {
    let slow = "def misbehave(request):\n    if request['type'] == 'train':\n        say(type='step', id=request['id'], step=1, examples=4, loss=1)\n        stop = ask()\n        open(stop['type'], 'w').close()\n        HEED\n";
    for (heed, alive) in [
        (
            "say(type='trained', id=request['id'], steps=1, num_examples=4, mean_loss=0, stopped=True); request['type'] = ''",
            true,
        ),
        ("time.sleep(600)", false),
    ] {
        let home = Home::new(&slow.replace("HEED", heed));
        let process = home.start();
        let mut trainer = prepared(&process);
        let shards = process.shards();
        let shard = shards.train.as_deref().expect("it trains");
        let mut control = |report: StepReport| match report.step {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        };
        let outcome = trainer.train(Round::new(&[1.0, 2.0], &spec().train, 9, shard, &mut control)).expect("stopped");
        assert!(outcome.stopped);
        assert!(home.path().join("stop").exists(), "it was asked before it was killed");
        assert_eq!(lock(&process.host).child.is_some(), alive);
    }
}

#[test]
fn a_program_that_is_no_trainer_is_refused_with_its_own_words() {
    let home = Home::new("def misbehave(request):\n    sys.exit('needs PyTorch: pip install torch')\n");
    let told = home.refusal();
    assert!(told.contains("exit code 1; its last words: needs PyTorch: pip install torch"), "{told}");
    let other = Home::new("say(type='hello', protocol=7, name='x', train_examples=1, eval_examples=0)\n");
    assert!(other.refusal().contains("it speaks version 7, this agent speaks 1"), "{}", other.refusal());
    let none = Home::new("say(type='hello', protocol=1, name='x', train_examples=0, eval_examples=0)\n");
    assert!(none.refusal().contains("it has no examples"), "{}", none.refusal());
    let mut options = home.options();
    options.command = vec!["./no-such-program".into()];
    let told = refusal(options);
    assert!(told.starts_with("cannot start the trainer \"./no-such-program\": No such file"), "{told}");
}

/// Guards the cause in what the agent's last line says: which tensor is beyond which bound.
#[test]
fn a_model_beyond_a_bound_is_refused_with_the_bound_named() {
    for (tensors, says) in [
        ("[]", "the manifest has no tensors"),
        ("[{'name': 'n' * 257, 'shape': [1]}]", "the name of tensor 0 has 257 bytes, more than 256"),
        ("[{'name': f't{i}', 'shape': [1]} for i in range(4097)]", "the manifest has 4097 tensors, more than 4096"),
        ("[{'name': 'w', 'shape': [1] * 9}]", "tensor \"w\" has 9 dimensions, more than 8"),
        ("[{'name': 'w', 'shape': [1 << 31]}]", "tensor \"w\" of shape [2147483648] brings the model above 1073741824"),
        ("[{'name': 'w', 'shape': [0]}]", "tensor \"w\" has no elements"),
        ("[{'name': 'w', 'shape': [1]}] * 2", "two tensors have the name \"w\""),
    ] {
        let home = Home::new(&format!(
            "def misbehave(request):\n    if request['type'] == 'prepare':\n        say(type='prepared', id=request['id'], tensors={tensors}); request['type'] = ''\n"
        ));
        let process = home.start();
        let Err(error) = process.factory()(&RunPart::of(&spec())) else { panic!("{tensors} was accepted") };
        assert!(!error.is_passing(), "a second try would end alike: {error:?}");
        let ending = crate::worker::ending(&error);
        let failed = format!("{:#}", crate::finish(ending).expect_err("the agent ends"));
        assert!(failed.starts_with("a run cannot take the trainer's model: "), "{failed:?}");
        assert!(failed.contains(says), "{failed:?} does not say {says:?}");
    }
}

/// A machine with a broken installation in mid-run: the model must not change under the run.
#[test]
fn a_fresh_child_with_another_model_is_not_used() {
    let changing = "def misbehave(request):\n    if request['type'] == 'prepare' and os.path.exists('second'):\n        say(type='prepared', id=request['id'], tensors=[{'name': 'v', 'shape': [2]}]); request['type'] = ''\n    if request['type'] == 'train':\n        open('second', 'w').close(); sys.exit(1)\n";
    let home = Home::new(changing);
    let process = home.start();
    let mut trainer = prepared(&process);
    assert!(matches!(train(&mut *trainer, &process), Err(TrainError::Lost(_))));
    match train(&mut *trainer, &process) {
        Err(TrainError::Lost(told)) => assert!(told.contains("other tensors than before"), "{told}"),
        other => panic!("{other:?}"),
    }
}

/// No child outlives its agent's interest in it, nor do the processes that it has started.
#[test]
fn the_whole_process_group_goes() {
    let home = Home::new(
        "import subprocess\nworker = subprocess.Popen(['sleep', '600'])\nopen('worker', 'w').write(str(worker.pid))\n",
    );
    let process = home.start();
    let worker = fs::read_to_string(home.path().join("worker")).expect("written");
    let alive = || {
        Command::new("kill").args(["-0", &worker]).stderr(std::process::Stdio::null()).status().expect("run").success()
    };
    assert!(alive());
    process.close();
    let clock = Clock::start();
    while alive() {
        assert!(clock.elapsed() < Duration::from_secs(30), "process {worker} is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A helper that has left the process group for a session of its own does not outlive its trainer.
#[test]
fn what_a_trainer_has_started_ends_with_it() {
    let home = Home::new(
        "import subprocess\n\
         apart = subprocess.Popen([\"sleep\", \"1000\"], start_new_session=True)\n\
         open(\"apart\", \"w\").write(str(apart.pid))\n",
    );
    let process = home.start();
    let pid = fs::read_to_string(home.path().join("apart")).expect("written");
    let state = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().chars().next())
    };
    assert!(matches!(state(), Some(Some('S' | 'R'))), "it runs: {:?}", state());
    process.close();
    assert!(matches!(state(), None | Some(Some('Z'))), "it is left: {:?}", state());
}
