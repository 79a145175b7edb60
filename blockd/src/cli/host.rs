//! `blockctl host …`: other hosts, how they come to be known, and whether they are trusted.

use std::io::BufRead;
use std::num::NonZeroU64;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::api::hosts::{CreateToken, HostCheck, HostInfo, OwnHost, PairHost, TrustHost};
use crate::exit_code;
use crate::failure::Failure;
use crate::jobs::job::Rate;

use super::args::{Sure, volume_name};
use super::context::{Context, Trying};
use super::job::{OrNone, or_none};
use super::volume::{Changed, Plan};
use super::{output, progress, time};

/// How long a token may be used, unless said otherwise.
const TTL_DEFAULT: &str = "10m";
/// Longest token on standard input.
const TOKEN_LINE_MAX: u64 = 8 << 10;

/// Other hosts.
#[derive(Subcommand, Debug)]
pub enum HostCommand {
    /// Make two hosts know each other: a token from one, used on the other.
    #[command(
        after_help = "Examples:\n  blockctl host pair --new            (on the one; prints a token, good for one use)\n  blockctl host pair bp1.…            (on the other)\n  blockctl host pair --new --ttl 1h --address b.example:10900\n  blockctl host pair - --as backup < token"
    )]
    Pair(PairArgs),
    /// All hosts that this one is paired with.
    #[command(visible_alias = "ls", after_help = "Example:\n  blockctl host list")]
    List,
    /// One host; without a name, this one.
    #[command(after_help = "Examples:\n  blockctl host show\n  blockctl host show B --check")]
    Show {
        /// Its name.
        #[arg(value_parser = volume_name)]
        name: Option<String>,
        /// Look whether it is there and lets us in.
        #[arg(long, requires = "name")]
        check: bool,
    },
    /// Allow links with a host, or no more; or say where it is now.
    #[command(
        after_help = "Examples:\n  blockctl host trust B --revoke\n  blockctl host trust B\n  blockctl host trust B --address 10.0.0.7:10900"
    )]
    Trust(TrustArgs),
    /// Limit what is sent to a host, by all jobs together; also while they are at it.
    #[command(
        after_help = "Examples:\n  blockctl host limit B 40MB/s\n  blockctl host limit B none\n\nA single job: blockctl job set NAME --rate 10MB/s"
    )]
    Limit {
        /// Its name.
        #[arg(value_parser = volume_name)]
        name: String,
        /// Bytes a second, as in 40MB/s; "none": as fast as it goes.
        #[arg(value_parser = or_none::<Rate>)]
        rate: OrNone<Rate>,
    },
    /// Forget a host. Its links end; to come back it must be paired again.
    #[command(visible_alias = "rm", after_help = "Example:\n  blockctl host remove B --plan")]
    Remove {
        /// Its name.
        #[arg(value_parser = volume_name)]
        name: String,
        /// How sure you are.
        #[command(flatten)]
        sure: Sure,
    },
}

/// `host pair`.
#[derive(Args)]
pub struct PairArgs {
    /// What `host pair --new` has printed on the other host; - reads it from standard input.
    #[arg(required_unless_present = "new", conflicts_with = "new")]
    pub token: Option<String>,
    /// Make a token for another host.
    #[arg(long)]
    pub new: bool,
    /// How long the token may be used: a number with s, m or h; at most a day.
    #[arg(long, value_name = "TIME", requires = "new", default_value = TTL_DEFAULT, value_parser = parse_span)]
    pub ttl: Duration,
    /// Where the other host finds this one; may be given several times. Default: where the daemon listens.
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Vec<String>,
    /// What to call the other host here. Default: what it calls itself.
    #[arg(long = "as", value_name = "NAME", value_parser = volume_name)]
    pub name: Option<String>,
    /// A paired host that was set up anew: let it show another certificate authority than before.
    #[arg(long, value_name = "NAME", value_parser = volume_name)]
    pub replace: Option<String>,
}

/// Without the token, which is a secret.
impl std::fmt::Debug for PairArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PairArgs").field("new", &self.new).finish_non_exhaustive()
    }
}

/// `host trust`.
#[derive(Args, Debug)]
pub struct TrustArgs {
    /// Its name.
    #[arg(value_parser = volume_name)]
    pub name: String,
    /// Allow no more: its links end, new ones are refused.
    #[arg(long)]
    pub revoke: bool,
    /// Where it is now; may be given several times.
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Vec<String>,
}

/// `90s`, `10m`, `1h`.
fn parse_span(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no time: a number with s, m or h, 1s to 24h");
    let unit = text.chars().last().and_then(|unit| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        _ => None,
    });
    let unit: u64 = unit.ok_or_else(bad)?;
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| bad())?;
    let seconds = number.checked_mul(unit).filter(|seconds| (1..=86_400).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(bad)
}

pub(super) async fn run(context: &Context, command: HostCommand) -> Result<(), Failure> {
    match command {
        HostCommand::Pair(pair) if pair.new => new_token(context, pair).await,
        HostCommand::Pair(pair) => use_token(context, pair).await,
        HostCommand::List => list(context).await,
        HostCommand::Show { name: None, .. } => show_own(context).await,
        HostCommand::Show { name: Some(name), check: false } => show(context, &name).await,
        HostCommand::Show { name: Some(name), check: true } => check(context, &name).await,
        HostCommand::Trust(args) => trust(context, args).await,
        HostCommand::Limit { name, rate } => limit(context, &name, rate.0).await,
        HostCommand::Remove { name, sure } => remove(context, &name, sure).await,
    }
}

/// The token alone goes to standard output, so that it can be handed on.
async fn new_token(context: &Context, args: PairArgs) -> Result<(), Failure> {
    let ttl_ms = u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX);
    let terms = CreateToken { ttl_ms, addresses: args.address, name: args.name, replace: args.replace };
    let created = context.client.new_host_token(&terms).await;
    let created = created.trying(|| "cannot make a pairing token".to_owned())?;
    if !context.for_people() {
        return output::object(&created);
    }
    output::line(&created.token)?;
    let span = time::span(ttl_ms);
    progress::note(&format!("good for one use within {span}; on the other host: blockctl host pair TOKEN"))
}

async fn use_token(context: &Context, args: PairArgs) -> Result<(), Failure> {
    let token = match args.token.unwrap_or_default() {
        token if token == "-" => read_token()?,
        token => token,
    };
    let request = PairHost { token, addresses: args.address, name: args.name, replace: args.replace };
    let host = context.client.pair_host(&request).await.trying(|| "cannot pair".to_owned())?;
    if !context.for_people() {
        return output::object(&host);
    }
    output::line(format!("paired with {} ({})", host.name, host.id))
}

fn read_token() -> Result<String, Failure> {
    let mut line = String::new();
    let read = std::io::Read::take(std::io::stdin().lock(), TOKEN_LINE_MAX).read_line(&mut line);
    let next = "blockctl host pair TOKEN";
    read.map_err(|error| Failure::new(exit_code::FAILED, "cannot read the token", error, next))?;
    Ok(line)
}

fn addresses(host: &HostInfo) -> String {
    if host.addresses.is_empty() { "–".to_owned() } else { host.addresses.join(" ") }
}

fn trust_word(host: &HostInfo) -> &'static str {
    if host.trusted { "trusted" } else { "revoked" }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let hosts = context.client.hosts().await.trying(|| "cannot list hosts".to_owned())?.hosts;
    if !context.for_people() {
        return output::list(context.format, "hosts", &hosts);
    }
    if hosts.is_empty() {
        return output::line("no hosts are paired; blockctl host pair --help");
    }
    let rows = hosts.iter().map(|host| {
        vec![
            host.name.clone(),
            trust_word(host).to_owned(),
            host.links.to_string(),
            time::utc(host.paired_ms),
            addresses(host),
        ]
    });
    output::table(&["NAME", "TRUST", "LINKS", "PAIRED (UTC)", "ADDRESSES"], &[2], rows.collect())
}

async fn show_own(context: &Context) -> Result<(), Failure> {
    let own = context.client.hosts().await.trying(|| "cannot show this host".to_owned())?.own;
    if !context.for_people() {
        return output::object(&own);
    }
    let OwnHost { name, id, fingerprint, listen, certificate_until_ms } = own;
    output::pairs(&[
        ("name", name),
        ("id", id),
        ("fingerprint", fingerprint),
        ("listens", listen.unwrap_or_else(|| "–".to_owned())),
        ("certificate", format!("until {}", time::utc(certificate_until_ms))),
    ])
}

async fn show(context: &Context, name: &str) -> Result<(), Failure> {
    let host = context.client.host(name).await.trying(|| format!("cannot show host {name}"))?;
    if !context.for_people() {
        return output::object(&host);
    }
    output::pairs(&[
        ("name", host.name.clone()),
        ("id", host.id.clone()),
        ("addresses", addresses(&host)),
        ("paired", time::utc(host.paired_ms)),
        ("trust", trust_word(&host).to_owned()),
        ("links", host.links.to_string()),
        ("rate", host.rate.map_or_else(|| "not limited".to_owned(), |rate| Rate(rate).to_string())),
    ])
}

async fn check(context: &Context, name: &str) -> Result<(), Failure> {
    let check = context.client.check_host(name).await.trying(|| format!("cannot reach host {name}"))?;
    if !context.for_people() {
        return output::object(&check);
    }
    let HostCheck { remote_name, address, round_trip_us, link_us } = check;
    let ms = |us: u64| format!("{}.{:03} ms", us / 1000, us % 1000);
    output::line(format!(
        "{name} answers at {address} as {remote_name}: round trip {}, link {}",
        ms(round_trip_us),
        ms(link_us)
    ))
}

async fn trust(context: &Context, args: TrustArgs) -> Result<(), Failure> {
    let TrustArgs { name, revoke, address } = args;
    let trust = TrustHost { trusted: !revoke, addresses: (!address.is_empty()).then_some(address) };
    let done = context.client.trust_host(&name, &trust).await;
    done.trying(|| format!("cannot change the trust in host {name}"))?;
    let (action, sentence) = match revoke {
        true => ("revoked", format!("{name} is not trusted any more; its links are closed")),
        false => ("trusted", format!("{name} is trusted")),
    };
    Changed::new(action, &name).tell(context, &sentence)
}

async fn limit(context: &Context, name: &str, rate: Option<Rate>) -> Result<(), Failure> {
    let bytes = rate.and_then(|rate| NonZeroU64::new(rate.0));
    let done = context.client.limit_host(name, bytes).await;
    done.trying(|| format!("cannot limit what is sent to {name}"))?;
    let sentence = match rate {
        Some(rate) => format!("all jobs together send at most {rate} to {name}"),
        None => format!("what is sent to {name} is not limited, but by the jobs' own rates"),
    };
    Changed::new("limited", name).tell(context, &sentence)
}

async fn remove(context: &Context, name: &str, sure: Sure) -> Result<(), Failure> {
    let what = || format!("cannot remove host {name}");
    let host = context.client.host(name).await.trying(what)?;
    let loss = match host.links {
        0 => "it must be paired again to come back".to_owned(),
        links => {
            format!("{} would end, and it must be paired again to come back", output::count(links, "link"))
        }
    };
    if sure.plan {
        let would = format!("would forget host {name} ({}): {loss}", host.id);
        let blocked_code = exit_code::REFUSED;
        return Plan { action: "removed", name, would, obstacles: Vec::new(), blocked_code }.tell(context);
    }
    context.confirm(sure, "host remove", &loss, name)?;
    context.client.remove_host(name).await.trying(what)?;
    Changed::new("removed", name).tell(context, &format!("removed host {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_unit_and_an_end() {
        assert_eq!(parse_span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_span("24h"), Ok(Duration::from_secs(86_400)));
        for bad in ["", "m", "10", "0s", "25h", "1441m", "-1m", "1d", "99999999999999999999h", "1é"] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }
}
