//! What the AWS tools' files say where the environment does not: the profile in `~/.aws/config` and `~/.aws/credentials`.
//!
//! As in the SDKs the environment goes before the files, and a profile's role or single sign-on before its keys; these two are refused, since they
//! take services of their own. Files: <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>.

use super::trouble::{StoreError, Trouble};
use crate::escape::{escaped, printable};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

/// Variables by which stores are found and their users known, as the stores' own tools name them.
pub type Variables = Vec<(String, String)>;

/// The environment's variables, and those that a profile adds.
#[derive(Default)]
pub struct Aws {
    /// All of them.
    pub variables: Variables,
    /// The program that gives the keys, as a command of a shell, and the profile that names it.
    pub process: Option<String>,
}

/// The settings of each section of a file; those of a nested part are called `part.name`.
type Sections = HashMap<String, BTreeMap<String, String>>;

/// Adds to the environment's variables what its profile says.
///
/// # Errors
/// When the profile that the environment names is not there, or its keys cannot be had from files.
pub fn completed(variables: &Variables) -> Result<Aws, StoreError> {
    let var = |name: &str| {
        let of = variables.iter().find(|(key, value)| key == name && !value.is_empty());
        of.map(|(_, value)| value.as_str())
    };
    let home = var("HOME").map(Path::new);
    let place = |name: &str, default: &str| match var(name) {
        Some(text) => {
            Some(text.strip_prefix("~/").zip(home).map_or_else(|| text.into(), |(rest, home)| home.join(rest)))
        }
        None => home.map(|home| home.join(".aws").join(default)),
    };
    let config = read(place("AWS_CONFIG_FILE", "config"))?;
    let keys = read(place("AWS_SHARED_CREDENTIALS_FILE", "credentials"))?;
    let named = var("AWS_PROFILE").or_else(|| var("AWS_DEFAULT_PROFILE"));
    let name = named.unwrap_or("default");
    // Only in the config file names stand behind the word `profile`.
    let of_config = config.get(&format!("profile {name}")).or_else(|| config.get(name).filter(|_| name == "default"));
    let (of_config, of_keys) = (of_config, keys.get(name));
    if named.is_some() && of_config.is_none() && of_keys.is_none() {
        let text = format!("there is no profile `{}` in the files of ~/.aws (correct AWS_PROFILE)", printable(name));
        return Err(StoreError::new(Trouble::Final, text));
    }
    let setting = |key: &str| {
        let found = of_keys.and_then(|of| of.get(key)).or_else(|| of_config.and_then(|of| of.get(key)));
        found.filter(|value| !value.is_empty())
    };
    let mut aws = Aws { variables: variables.clone(), process: None };
    let mut add = |name: &str, value: &str| aws.variables.push((name.to_owned(), value.to_owned()));
    if let Some(region) =
        setting("region").filter(|_| var("AWS_REGION").or_else(|| var("AWS_DEFAULT_REGION")).is_none())
    {
        add("AWS_REGION", region);
    }
    if !["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"].iter().any(|name| var(name).is_some()) {
        let of_service = setting("services").and_then(|name| config.get(&format!("services {name}")));
        let endpoint = of_service.and_then(|of| of.get("s3.endpoint_url")).or_else(|| setting("endpoint_url"));
        endpoint.iter().for_each(|endpoint| add("AWS_ENDPOINT_URL", endpoint));
    }
    let has_keys = var("AWS_ACCESS_KEY_ID").is_some() && var("AWS_SECRET_ACCESS_KEY").is_some();
    let is_public = var("AWS_SKIP_SIGNATURE").is_some_and(|text| !["0", "false"].contains(&text));
    if has_keys || is_public || var("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() {
        return Ok(aws);
    }
    let refused = |what: &str| {
        let name = printable(name);
        let text = format!(
            "profile `{name}` has {what}, which mixd does not follow: put its keys into the environment with \
             eval \"$(aws configure export-credentials --profile {name} --format env)\""
        );
        Err(StoreError::new(Trouble::Final, text))
    };
    match (setting("web_identity_token_file"), setting("role_arn")) {
        (Some(file), Some(role)) => {
            add("AWS_WEB_IDENTITY_TOKEN_FILE", file);
            add("AWS_ROLE_ARN", role);
            setting("role_session_name").iter().for_each(|name| add("AWS_ROLE_SESSION_NAME", name));
            return Ok(aws);
        }
        (None, Some(_)) => return refused("a role to assume (role_arn)"),
        (_, None) => {}
    }
    if let Some(key) = ["sso_session", "sso_start_url", "login_session"].iter().find(|key| setting(key).is_some()) {
        return refused(&format!("a sign-on in a browser ({key})"));
    }
    match [setting("aws_access_key_id"), setting("aws_secret_access_key")] {
        [Some(id), Some(secret)] => {
            add("AWS_ACCESS_KEY_ID", id);
            add("AWS_SECRET_ACCESS_KEY", secret);
            setting("aws_session_token").iter().for_each(|token| add("AWS_SESSION_TOKEN", token));
        }
        [None, None] => aws.process = setting("credential_process").cloned(),
        _ => {
            let name = printable(name);
            let text =
                format!("profile `{name}` has one of aws_access_key_id and aws_secret_access_key: it takes both");
            return Err(StoreError::new(Trouble::Final, text));
        }
    }
    Ok(aws)
}

/// The sections of a file, none where it is not there.
fn read(path: Option<PathBuf>) -> Result<Sections, StoreError> {
    let Some(path) = path else { return Ok(Sections::new()) };
    match std::fs::read(&path) {
        Ok(bytes) => Ok(sections(&String::from_utf8_lossy(&bytes))),
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
            Ok(Sections::new())
        }
        Err(error) => {
            let text = format!("cannot read {}: {error} (AWS_PROFILE, ~/.aws)", escaped(&path));
            Err(StoreError::new(Trouble::Final, text))
        }
    }
}

fn sections(text: &str) -> Sections {
    let mut all = Sections::new();
    let (mut section, mut part) = (String::new(), String::new());
    for line in text.lines() {
        let is_nested = line.starts_with([' ', '\t']);
        // A comment behind a value has a space before it; a secret may hold the signs themselves.
        let end = [" #", " ;", "\t#", "\t;"].iter().filter_map(|sign| line.find(sign)).min().unwrap_or(line.len());
        let line = line[..end].trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
            let words: Vec<_> = name.split_whitespace().collect();
            section = words.join(" ").replace(['"', '\''], "");
            part.clear();
            // A section without settings is a profile nevertheless.
            all.entry(section.clone()).or_default();
        } else if let Some((key, value)) = line.split_once('=') {
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
            let key = if is_nested && !part.is_empty() { format!("{part}.{key}") } else { key };
            if !is_nested {
                part = if value.is_empty() { key.clone() } else { String::new() };
            }
            all.entry(section.clone()).or_default().insert(key, value.to_owned());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "[default]\nregion = eu-west-1 # near\n\
        [profile keys]\nregion=us-east-2\nservices = local\nendpoint_url = https://other\n\
        [services local]\ns3 =\n  endpoint_url = http://minio:9000\n  addressing_style = path\ndynamodb =\n  endpoint_url = http://no\n\
        [profile 'with space']\nendpoint_url = https://e\n\
        [profile sso]\nsso_session = me\naws_access_key_id = A\naws_secret_access_key = B\n\
        [profile role]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = default\n\
        [profile web]\nrole_arn = arn\nweb_identity_token_file = /token\n\
        [profile process]\ncredential_process = /bin/keys --for me\n\
        [profile empty]\n[profile half]\naws_access_key_id = A\n";
    const KEYS: &str = "; keys\n[default]\naws_access_key_id = D\naws_secret_access_key = E/#;+=\n\
        [keys]\nAWS_ACCESS_KEY_ID=K\naws_secret_access_key = S\naws_session_token = T\n";

    /// What the variables become with these files.
    fn with(variables: &[(&str, &str)]) -> Result<(Variables, Option<String>), String> {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/config"), CONFIG).unwrap();
        std::fs::write(home.path().join(".aws/credentials"), KEYS).unwrap();
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut all: Variables = variables.iter().map(own).collect();
        all.push(("HOME".into(), home.path().to_str().unwrap().into()));
        let aws = completed(&all).map_err(|error| error.to_string())?;
        Ok((aws.variables[all.len()..].to_vec(), aws.process))
    }

    fn added(variables: &[(&str, &str)]) -> String {
        let (added, process) = with(variables).unwrap();
        let added = added.into_iter().map(|(name, value)| format!("{name}={value}"));
        added.chain(process).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_profile_adds_what_the_environment_leaves_open() {
        let keys = "AWS_ACCESS_KEY_ID=K AWS_SECRET_ACCESS_KEY=S AWS_SESSION_TOKEN=T";
        let own = [("AWS_ACCESS_KEY_ID", "X"), ("AWS_SECRET_ACCESS_KEY", "Y")];
        for (variables, expected) in [
            (&[][..], "AWS_REGION=eu-west-1 AWS_ACCESS_KEY_ID=D AWS_SECRET_ACCESS_KEY=E/#;+=".to_owned()),
            (&[("AWS_PROFILE", "keys")], format!("AWS_REGION=us-east-2 AWS_ENDPOINT_URL=http://minio:9000 {keys}")),
            (&[("AWS_PROFILE", "keys"), ("AWS_REGION", "r"), ("AWS_ENDPOINT_URL_S3", "e")], keys.to_owned()),
            (&[("AWS_PROFILE", "keys"), ("AWS_DEFAULT_REGION", "r"), ("AWS_ENDPOINT_URL", "e")], keys.to_owned()),
            // Keys are never mixed: no token of the profile with the environment's.
            (&own, "AWS_REGION=eu-west-1".to_owned()),
            // Half of them are none.
            (&own[..1], "AWS_REGION=eu-west-1 AWS_ACCESS_KEY_ID=D AWS_SECRET_ACCESS_KEY=E/#;+=".to_owned()),
            (&[("AWS_SKIP_SIGNATURE", "true"), ("AWS_PROFILE", "sso")], String::new()),
            (&[("AWS_PROFILE", "with space")], "AWS_ENDPOINT_URL=https://e".to_owned()),
            (&[("AWS_PROFILE", "empty")], String::new()),
            (&[("AWS_PROFILE", "web")], "AWS_WEB_IDENTITY_TOKEN_FILE=/token AWS_ROLE_ARN=arn".to_owned()),
            (&[("AWS_DEFAULT_PROFILE", "process")], "/bin/keys --for me".to_owned()),
            (&[("AWS_CONFIG_FILE", "/none"), ("AWS_SHARED_CREDENTIALS_FILE", "~/.none")], String::new()),
        ] {
            assert_eq!(added(variables), expected, "{variables:?}");
        }
    }

    #[test]
    fn what_cannot_be_followed_is_refused_by_name() {
        let remedy = "aws configure export-credentials --profile";
        for (profile, expected) in [
            ("sso", ["profile `sso`", "sso_session", remedy]),
            ("role", ["profile `role`", "role_arn", remedy]),
            ("half", ["profile `half`", "takes both", ""]),
            ("other", ["no profile `other`", "AWS_PROFILE", ""]),
        ] {
            let error = with(&[("AWS_PROFILE", profile)]).unwrap_err();
            assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let error = with(&[("AWS_CONFIG_FILE", dir.path().to_str().unwrap())]).unwrap_err();
        assert!(error.contains("cannot read"), "{error}");
    }
}
