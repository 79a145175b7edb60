//! Jobs as the configuration file has them: templates, and sections that use them.
//!
//! ```toml
//! [template.production]
//! every = "5m"
//! to = ["B"]
//!
//! [volume."web1-sys"]             # a job of that name, with that volume
//! use = "production"
//! every = "30s"                   # instead of the template's
//!
//! [job.mail]                      # several volumes, cut at one instant
//! use = "production"
//! volumes = ["mail-sys", "mail-data"]
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;

use super::calendar::Calendar;
use super::job::{JOBS_MAX, Job, Rate};
use super::keep::Keep;
use super::schedule::Schedule;
use super::span::Span;

/// A template, a volume's job, or a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobSection {
    /// The template that says what is not said here. Not in templates themselves.
    #[serde(rename = "use")]
    pub template: Option<String>,
    /// The volumes of a job. Not in templates and volumes.
    pub volumes: Option<Vec<String>>,
    /// The targets.
    pub to: Option<Vec<String>>,
    /// A span, or a calendar event.
    pub every: Option<Schedule>,
    /// Cron's grammar.
    pub cron: Option<String>,
    /// A calendar event.
    pub at: Option<String>,
    /// What is kept here.
    pub keep: Option<Keep>,
    /// What is kept at the targets.
    pub keep_remote: Option<Keep>,
    /// As in `40MB/s`.
    pub rate: Option<Rate>,
    /// How old the last point may become.
    pub rpo: Option<Span>,
    /// Does not run.
    pub paused: Option<bool>,
}

/// A section's key, and what is wrong with it.
type Wrong = (String, String);

/// All jobs of a file.
///
/// # Errors
/// The section and what is wrong with it.
pub fn jobs(
    templates: &BTreeMap<String, JobSection>,
    volumes: &BTreeMap<String, JobSection>,
    groups: &BTreeMap<String, JobSection>,
) -> Result<Vec<Job>, Wrong> {
    for (name, template) in templates {
        let key = format!("template.{name}");
        if template.template.is_some() || template.volumes.is_some() {
            return Err((key, "a template has neither use nor volumes".to_owned()));
        }
        template.schedule().map_err(|why| (key, why))?;
    }
    let mut jobs = Vec::new();
    for (name, section) in volumes {
        let wrong = |why: &str| (format!("volume.{name}"), why.to_owned());
        if section.volumes.is_some() {
            return Err(wrong("a volume's job has that volume; several have a section [job.NAME]"));
        }
        let job = section.over(templates).and_then(|section| section.job(name, vec![name.clone()]));
        jobs.push(job.map_err(|why| wrong(&why))?);
    }
    for (name, section) in groups {
        let wrong = |why: &str| (format!("job.{name}"), why.to_owned());
        if volumes.contains_key(name) {
            return Err(wrong("the volume of that name has a job already, and it is called the same"));
        }
        let volumes = section.volumes.clone().ok_or_else(|| wrong("volumes is missing"))?;
        let job = section.over(templates).and_then(|section| section.job(name, volumes));
        jobs.push(job.map_err(|why| wrong(&why))?);
    }
    match jobs.get(JOBS_MAX) {
        Some(job) => Err((format!("volume.{}", job.name), format!("more than {JOBS_MAX} jobs"))),
        None => Ok(jobs),
    }
}

impl JobSection {
    /// This section, and what it leaves open from its template.
    fn over(&self, templates: &BTreeMap<String, Self>) -> Result<Self, String> {
        let own = self.clone();
        let Some(name) = &self.template else { return Ok(own) };
        let template = templates.get(name).ok_or_else(|| format!("there is no template {name}"))?.clone();
        let scheduled = own.every.is_some() || own.cron.is_some() || own.at.is_some();
        let (every, cron, at) = if scheduled {
            (own.every, own.cron, own.at)
        } else {
            (template.every, template.cron, template.at)
        };
        Ok(Self {
            template: None,
            volumes: own.volumes,
            to: own.to.or(template.to),
            every,
            cron,
            at,
            keep: own.keep.or(template.keep),
            keep_remote: own.keep_remote.or(template.keep_remote),
            rate: own.rate.or(template.rate),
            rpo: own.rpo.or(template.rpo),
            paused: own.paused.or(template.paused),
        })
    }

    fn schedule(&self) -> Result<Schedule, String> {
        match (&self.every, &self.cron, &self.at) {
            (None, None, None) => Ok(Schedule::Manual),
            (Some(every), None, None) => Ok(every.clone()),
            (None, Some(cron), None) => Ok(Schedule::Calendar(Box::new(Calendar::cron(cron)?))),
            (None, None, Some(at)) => Ok(Schedule::Calendar(Box::new(Calendar::event(at)?))),
            _ => Err("one of every, cron and at".to_owned()),
        }
    }

    fn job(&self, name: &str, volumes: Vec<String>) -> Result<Job, String> {
        let to = self.to.clone().ok_or("to is missing: where is it to go?")?;
        let job = Job {
            schedule: self.schedule()?,
            keep: self.keep.unwrap_or(Keep::DEFAULT),
            keep_remote: self.keep_remote,
            rate: self.rate.map(|rate| rate.0),
            rpo: self.rpo,
            paused: self.paused.unwrap_or(false),
            from_config: true,
            ..Job::new(name, volumes, to)
        };
        job.check()?;
        Ok(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct File {
        template: BTreeMap<String, JobSection>,
        volume: BTreeMap<String, JobSection>,
        job: BTreeMap<String, JobSection>,
    }

    fn read(text: &str) -> Result<Vec<Job>, String> {
        let file: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        jobs(&file.template, &file.volume, &file.job).map_err(|(key, why)| format!("{key}: {why}"))
    }

    const TEMPLATE: &str = "[template.production]
every = 'Mon..Fri 08..18:00/15'
to = ['B']
keep = { last = 3, hourly = 24 }
keep_remote = { daily = 30 }
rate = '40MB/s'
";

    #[test]
    fn a_section_says_what_differs_from_its_template() {
        let text = format!(
            "{TEMPLATE}[volume.'web1-sys']\nuse = 'production'\nevery = '30s'\nrpo = '60s'\n\
             [job.mail]\nuse = 'production'\nvolumes = ['mail-sys', 'mail-data']\nkeep = {{ within = '7d' }}\n"
        );
        let jobs = read(&text).unwrap();
        let web = &jobs[0];
        assert_eq!(
            (web.name.as_str(), &web.volumes, &web.to),
            ("web1-sys", &vec!["web1-sys".to_owned()], &vec!["B".to_owned()])
        );
        assert_eq!(
            (web.schedule.to_string().as_str(), web.rate, web.keep.hourly),
            ("30s", Some(40 << 20), 24)
        );
        assert!(web.from_config && web.rpo.is_some());
        let mail = &jobs[1];
        assert_eq!((mail.volumes.len(), mail.keep.last, mail.keep_there().daily), (2, 0, 30));
        assert_eq!(mail.schedule.to_string(), "Mon..Fri 08..18:00/15");
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (text, why) in [
            ("[volume.web]\nto = ['B']\nfreeze = 'guest-agent'\n", "unknown field `freeze`"),
            ("[volume.web]\nevery = '5m'\n", "volume.web: to is missing"),
            ("[volume.web]\nuse = 'x'\n", "volume.web: there is no template x"),
            (
                "[volume.web]\nto = ['B']\nevery = '5m'\ncron = '* * * * *'\n",
                "volume.web: one of every, cron and at",
            ),
            ("[volume.web]\nto = ['B']\nevery = '0s'\n", "every 0s"),
            ("[volume.web]\nto = ['B']\nrate = '0'\n", "a rate of 0"),
            ("[volume.web]\nto = ['B']\nkeep = { forever = 1 }\n", "unknown field `forever`"),
            ("[volume.web]\nto = ['B']\nvolumes = ['db']\n", "volume.web: a volume's job"),
            (
                "[volume.web]\nto = ['B']\n[job.web]\nto = ['B']\nvolumes = ['a']\n",
                "job.web: the volume of that name",
            ),
            ("[job.web]\nto = ['B']\n", "job.web: volumes is missing"),
            ("[template.a]\nuse = 'b'\n", "template.a: a template has neither"),
            ("[template.a]\nat = '25:00'\n", "template.a: \"25:00\" is no calendar event"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
