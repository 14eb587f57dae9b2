//! `checkpoint rollback` through the binary.

use crate::support::{Directory, write_safetensors};

fn status(directory: &Directory) -> serde_json::Value {
    serde_json::from_str(&directory.call(&["status"], &["--json"]).code(0).stdout).expect("JSON")
}

fn exported(directory: &Directory) -> Vec<u8> {
    let out = directory.file("out.safetensors");
    directory.call(&["checkpoint", "export"], &["--out", &out.display().to_string(), "--force"]).code(0);
    std::fs::read(out).expect("exported")
}

#[test]
fn a_stopped_run_goes_back_to_an_earlier_version_and_goes_on() {
    let directory = Directory::init_custom();
    // The checkpoint that `stop` takes would otherwise be the oldest version to go back to.
    directory.edit("retention = \"since_snapshot\"", "retention = \"all\"");
    directory.call(&["checkpoint", "rollback"], &["--version", "0"]).code(4).says("holds no run");
    directory.call(&["checkpoint", "rollback"], &[]).code(2).says("--version");
    let file = directory.file("model.safetensors");
    let import = |values: &[f32; 2]| {
        write_safetensors(&file, &[("w", &[2], values)]);
        directory.call(&["checkpoint", "import"], &[&file.display().to_string()]).code(0);
    };
    import(&[1.0, -0.0]);
    let first = exported(&directory);
    import(&[5.0, 6.0]);
    let before = status(&directory);
    directory.call(&["checkpoint", "rollback"], &["--version", "7"]).code(4).says("versions 0 to 1 are");
    assert_eq!(status(&directory)["position"], before["position"], "a refusal changes nothing");

    let serving = directory.serve();
    let refused = directory.call(&["checkpoint", "rollback"], &["--version", "0"]).code(4);
    refused.says("a coordinator is running").says("end `run` with SIGTERM");
    assert!(directory.call(&["stop"], &[]).code(0).stdout.contains("stopped at version 1"));
    let (code, log) = serving.wait();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(status(&directory)["state"], "finished");

    let done = directory.call(&["checkpoint", "rollback"], &["--version", "0"]).code(0).stdout;
    let after = status(&directory);
    assert!(done.contains("from version 1 to version 0 on branch"), "{done}");
    assert!(done.contains(after["branch"].as_str().expect("a branch")), "{done}");
    assert_ne!(after["branch"], before["branch"]);
    assert_eq!((after["version"].as_u64(), after["state"].as_str()), (Some(0), Some("running")), "it goes on");
    assert_eq!(exported(&directory), first, "the same bits");
    assert!(directory.call(&["checkpoint", "verify"], &[]).code(0).stdout.contains("everything holds"));

    let serving = directory.serve();
    assert_eq!(status(&directory)["branch"], after["branch"]);
    let (code, log) = serving.terminate();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("parked"), "{log}");
}
