//! "Did you mean …?": names that look like a mistyped one.

/// Those of `candidates` that are closest to `word`, if they are close enough to be meant and not too many to tell.
pub(crate) fn matches<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut closest = (word.chars().count() / 3).max(1);
    let mut near = Vec::new();
    for candidate in candidates {
        let distance = strsim::damerau_levenshtein(word, candidate);
        if distance < closest {
            closest = distance;
            near.clear();
        }
        if distance <= closest {
            near.push(candidate.to_owned());
        }
    }
    if near.len() > 3 { Vec::new() } else { near }
}

/// The question as it is appended to a message; nothing if nothing is near.
pub(crate) fn question(near: &[String]) -> String {
    match near {
        [] => String::new(),
        near => format!(", did you mean {}?", near.join(" or ")),
    }
}
