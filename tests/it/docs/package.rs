//! What is in dist/, and the Debian package's metadata in Cargo.toml: what it wants to pack is there (`cargo deb` finds out last, after a release
//! build), and the settings of the examples are settings.
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use keyfence::tenant::password::Password;

/// Whether `path` from the root, with at most one `*` in its last part, is a file that is there.
fn is_there(root: &Path, path: &str) -> bool {
    let Some((start, end)) = path.split_once('*') else { return root.join(path).is_file() };
    let (folder, start) = start.rsplit_once('/').unwrap_or((".", start));
    let names = std::fs::read_dir(root.join(folder))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .into_iter()
        .any(|name| name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end))
}

#[test]
fn what_is_packed_is_there() {
    let root = super::root();
    let cargo: toml::Value =
        std::fs::read_to_string(root.join("Cargo.toml")).unwrap().parse::<toml::Table>().unwrap().into();
    let deb = &cargo["package"]["metadata"]["deb"];
    let text = |value: &toml::Value| value.as_str().unwrap().to_owned();
    let assets: Vec<[String; 3]> =
        deb["assets"].as_array().unwrap().iter().map(|asset| [0, 1, 2].map(|at| text(&asset[at]))).collect();
    for [from, to, mode] in &assets {
        assert!(from == "target/release/keyfence" || is_there(&root, from), "there is no {from}");
        let is_program = to.starts_with("usr/bin/");
        assert_eq!(mode == "755", is_program, "{to}");
    }
    assert!(assets.iter().any(|[_, to, _]| to.starts_with("usr/share/man/man1/")), "no manual page");
    for file in deb["conf-files"].as_array().unwrap() {
        let to = text(file);
        assert!(assets.iter().any(|[_, asset, _]| format!("/{asset}") == to), "{to} is not packed");
    }
    let unit = root.join(text(&deb["systemd-units"]["unit-scripts"])).join("keyfence.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    assert!(
        unit.contains("\nExecStart=/usr/bin/keyfence run -c /etc/keyfence/config.toml\n"),
        "the unit starts what is packed"
    );
    for page in unit.split_whitespace().filter_map(|word| word.strip_prefix("file:///usr/share/doc/keyfence/")) {
        assert!(is_there(&root.join("docs"), page), "the unit names {page}");
    }
}

#[test]
fn the_scripts_of_the_package_are_scripts() {
    let folder = super::root().join("dist/debian");
    for name in ["postinst", "postrm"] {
        let path = folder.join(name);
        let parsed = Command::new("sh").arg("-n").arg(&path).output().unwrap();
        assert!(parsed.status.success(), "{name}: {parsed:?}");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().any(|line| line == "#DEBHELPER#"), "{name}: what cargo-deb adds has no place");
        assert!(path.metadata().unwrap().permissions().mode() & 0o111 != 0, "{name} cannot be run");
    }
}

/// The files that shells read complete what this program says; bash is here to be asked.
#[test]
fn the_completions_are_those_of_the_program() {
    let folder = super::root().join("dist/completions");
    for (file, shell) in [("keyfence.bash", "bash"), ("_keyfence", "zsh"), ("keyfence.fish", "fish")] {
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        assert!(text.contains(&format!("keyfence completions {shell}")), "{file}");
        let said = Command::new(env!("CARGO_BIN_EXE_keyfence")).args(["completions", shell]).output().unwrap();
        assert!(said.status.success() && !said.stdout.is_empty(), "{shell}");
    }
    let program = Path::new(env!("CARGO_BIN_EXE_keyfence")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let typed = r#"source keyfence.bash; COMP_WORDS=(keyfence hash-p) COMP_CWORD=1; _keyfence keyfence hash-p keyfence; echo "${COMPREPLY[@]}""#;
    let completed = Command::new("bash").args(["-c", typed]).env("PATH", path).current_dir(&folder).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&completed.stdout), "hash-password\n", "{completed:?}");
}

/// The lines below `key: |` of a YAML file, without their indentation.
fn block_of(yaml: &str, key: &str) -> String {
    let mut lines = yaml.lines().skip_while(|line| line.trim() != format!("{key}: |"));
    let indent = lines.next().unwrap().find(key).unwrap();
    let inside = lines.take_while(|line| line.trim().is_empty() || line.find(|c: char| c != ' ') > Some(indent));
    inside.map(|line| format!("{}\n", line.get(indent + 2..).unwrap_or_default())).collect()
}

/// The value of `key: value`.
fn value_of<'a>(yaml: &'a str, key: &str) -> &'a str {
    yaml.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": ")).unwrap()
}

#[test]
fn the_settings_of_the_examples_are_read() {
    let read = |file: &str| std::fs::read_to_string(super::root().join("dist").join(file)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let secret = read("kubernetes/secret.yaml");
    let hash = block_of(&secret, "acme-passwords");
    assert!(Password::parse(hash.trim()).is_ok_and(|password| password.verify(b"change-me")), "{hash}");
    std::fs::write(folder.path().join("acme-passwords"), hash).unwrap();
    std::fs::write(folder.path().join("upstream-url"), value_of(&secret, "upstream-url")).unwrap();
    let mounted = block_of(&read("kubernetes/configmap.yaml"), "config.toml");
    let here = mounted.replace("/run/keyfence/secrets", folder.path().to_str().unwrap());
    assert_ne!(mounted, here, "the secrets are where the Deployment mounts them");
    for (settings, args, shown) in [
        (here, &["--tenant", "acme"][..], "\nupstream    GET acme:k\n"),
        (read("docker/config.toml"), &[], "\nupstream    GET keyfence:k\n"),
    ] {
        std::fs::write(folder.path().join("config.toml"), settings).unwrap();
        let mut explain = Command::new(env!("CARGO_BIN_EXE_keyfence"));
        explain.arg("explain").args(args).args(["--", "GET", "k"]).env_clear().current_dir(folder.path());
        let said = explain.output().unwrap();
        let text = String::from_utf8([said.stdout, said.stderr].concat()).unwrap();
        assert!(text.contains(shown), "{text}");
    }
}
