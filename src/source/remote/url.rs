//! Addresses of objects, which are shown without what may be secret in them.

use crate::types::ParseError;
use std::fmt;
use std::str::FromStr;

/// Which protocol an object is read by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Amazon S3, or what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage.
    Az,
    /// A web server that answers requests for ranges.
    Http,
}

/// What an address may begin with. `http://` is for servers in one's own network.
const SCHEMES: [(&str, Scheme); 6] = [
    ("s3://", Scheme::S3),
    ("s3a://", Scheme::S3),
    ("gs://", Scheme::Gs),
    ("az://", Scheme::Az),
    ("https://", Scheme::Http),
    ("http://", Scheme::Http),
];

/// The address of an object, or of a prefix of objects' names.
///
/// A query may hold a signature, and the part before an `@` a password: [`Url::text`] alone has them; `Display` and `Debug` leave them out.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    text: String,
    /// Where the name of the bucket or host begins in `text`.
    host_at: usize,
    /// Where the object's name begins, behind the slash.
    name_at: usize,
    /// Where the query begins, if there is one.
    query_at: usize,
}

impl Url {
    /// Whether a text is meant as an address rather than a path.
    pub fn is_url(text: &str) -> bool {
        SCHEMES.iter().any(|(prefix, _)| text.starts_with(prefix))
    }

    /// A list of addresses and paths, joined by `::`, without what may be secret in it.
    pub fn shown(text: &str) -> String {
        let shown = |part: &str| match part.parse() {
            Ok::<Self, _>(url) => url.to_string(),
            Err(error) if Self::is_url(part) => error.found,
            Err(_) => part.to_owned(),
        };
        text.split("::").map(shown).collect::<Vec<_>>().join("::")
    }

    /// Which protocol.
    pub fn scheme(&self) -> Scheme {
        let is_prefix = |(prefix, _): &&(&str, Scheme)| prefix.len() == self.host_at && self.text.starts_with(prefix);
        SCHEMES.iter().find(is_prefix).map_or(Scheme::Http, |(_, scheme)| *scheme)
    }

    /// All of it, with what may be secret: for requests alone.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Protocol and bucket, or host: `s3://bucket`. With what may be secret in front of an `@`.
    pub fn root(&self) -> &str {
        self.text[..self.name_at].trim_end_matches('/')
    }

    /// The bucket, or the host.
    pub fn bucket(&self) -> &str {
        let host = self.root().get(self.host_at..).unwrap_or_default();
        host.rsplit_once('@').map_or(host, |(_, host)| host)
    }

    /// The object's name in its bucket.
    pub fn name(&self) -> &str {
        &self.text[self.name_at..self.query_at]
    }

    /// The object of a name in this folder; a query is kept.
    pub fn inside(&self, name: &str) -> Self {
        let folder = self.name();
        let separator = if folder.is_empty() || folder.ends_with('/') { "" } else { "/" };
        self.sibling(&format!("{folder}{separator}{name}"))
    }

    /// The object of another name in the same bucket; a query is kept.
    pub fn sibling(&self, name: &str) -> Self {
        let text = format!("{}/{name}{}", self.root(), &self.text[self.query_at..]);
        let name_at = self.root().len() + 1;
        Self { host_at: self.host_at, name_at, query_at: name_at + name.len(), text }
    }
}

impl FromStr for Url {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refused = |found: String| ParseError {
            what: "address",
            found,
            expected: "s3://BUCKET/NAME, gs://BUCKET/NAME, az://CONTAINER/NAME or https://HOST/NAME",
        };
        let Some((prefix, scheme)) = SCHEMES.iter().find(|(prefix, _)| text.starts_with(prefix)) else {
            return Err(refused(text.to_owned()));
        };
        let host_at = prefix.len();
        // In stores a `?` may be part of a name; of a pattern's it is.
        let query = if *scheme == Scheme::Http { text.find('?') } else { None };
        let query_at = query.unwrap_or(text.len());
        let name_at = text[host_at..query_at].find('/').map_or(query_at, |at| host_at + at + 1);
        let url = Self { text: text.to_owned(), host_at, name_at, query_at };
        if url.bucket().is_empty() || text.chars().any(char::is_control) {
            return Err(refused(url.to_string().escape_debug().to_string()));
        }
        Ok(url)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", &self.text[..self.host_at], self.bucket())?;
        if self.text[..self.name_at].ends_with('/') {
            write!(f, "/{}", self.name())?;
        }
        if self.query_at < self.text.len() {
            f.write_str("?…")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        for (text, scheme, bucket, name, shown) in [
            ("s3://b/a/b.tar", Scheme::S3, "b", "a/b.tar", "s3://b/a/b.tar"),
            ("s3a://b/what?.tar", Scheme::S3, "b", "what?.tar", "s3a://b/what?.tar"),
            ("gs://b/", Scheme::Gs, "b", "", "gs://b/"),
            ("az://b", Scheme::Az, "b", "", "az://b"),
            ("https://h:8/x/y.tar?X-Sig=abc", Scheme::Http, "h:8", "x/y.tar", "https://h:8/x/y.tar?…"),
            ("http://me:word@h/y", Scheme::Http, "h", "y", "http://h/y"),
            ("https://h?key=abc", Scheme::Http, "h", "", "https://h?…"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!((url.scheme(), url.bucket(), url.name()), (scheme, bucket, name), "{text}");
            assert_eq!((url.text(), url.to_string(), format!("{url:?}")), (text, shown.to_owned(), shown.to_owned()));
        }
        let url: Url = "https://h/a/b.tar?sig=abc".parse().unwrap();
        assert_eq!(url.sibling("c.idx"), "https://h/c.idx?sig=abc".parse().unwrap());
        assert_eq!(Url::shown("a.tar::s3://b/a.tar::https://h/b?sig=abc"), "a.tar::s3://b/a.tar::https://h/b?…");
        let url: Url = "s3://b".parse().unwrap();
        assert_eq!(url.sibling("c"), "s3://b/c".parse().unwrap());
        for (folder, expected) in
            [("s3://b", "s3://b/c"), ("s3://b/a", "s3://b/a/c"), ("https://h/a/?q=1", "https://h/a/c?q=1")]
        {
            assert_eq!(folder.parse::<Url>().unwrap().inside("c").text(), expected);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_its_secrets() {
        for text in ["", "b/c", "ftp://b/c", "s3:///c", "https://?sig=abc", "https://me:word@/x", "s3://b/a\nb"] {
            let error = text.parse::<Url>().unwrap_err().to_string();
            assert!(!["abc", "word", "\n"].iter().any(|secret| error.contains(secret)), "{error}");
        }
    }
}
