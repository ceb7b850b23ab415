use super::*;
use proptest::prelude::*;

fn number(text: &str) -> Number {
    text.parse().unwrap()
}

fn one(entry: &str) -> Result<Intervention> {
    Spec::parse_toml(&format!("sae = 's'\n[[interventions]]\nfeature = 7\n{entry}")).map(|s| s.interventions[0].clone())
}

fn refusal(text: &str) -> String {
    let e = Spec::parse_toml(text).expect_err(text);
    assert!(e.is_input(), "{e}");
    e.to_string()
}

#[test]
fn ranges_have_two_ends() {
    let spec = |range: &str| {
        format!("sae = 's'\ninterventions = [{{ feature = 1, action = 'ablate' }}]\n[domain]\nrange = {range}")
    };
    assert!(Spec::parse_toml(&spec("[-1, 1]")).is_ok());
    for range in ["[-1]", "[]", "[0, 1, 2]", "[-160, 160, 'banana', { a = 1 }]"] {
        assert!(Spec::parse_toml(&spec(range)).is_err(), "{range}");
    }
}

/// A decimal half-way between two floats means the one that it was read as: the even one.
#[test]
fn ties_go_to_the_even_float() {
    for x in [1.59237980845198e17, -1.59237980845198e17, 9007199254740993.0, 9007199254740995.0] {
        let number: Number = format!("{x:e}").parse().unwrap();
        assert_eq!(number.to_f64(), x);
    }
    let exactly = |text: &str| text.parse::<Number>().unwrap().to_f64();
    assert_eq!((exactly("9007199254740993"), exactly("9007199254740995")), (9007199254740992.0, 9007199254740996.0));
    assert_eq!(
        (exactly("-9007199254740993"), exactly("-9007199254740995")),
        (-9007199254740992.0, -9007199254740996.0)
    );
}

/// Steps may repeat; what happens at once is said once.
#[test]
fn nothing_is_said_twice() {
    let spec = |sequence: bool| {
        format!(
            "sae = 's'\nsequence = {sequence}\ninterventions = [{{ feature = 1, action = 'add', value = 1 }}, {{ feature = 1, action = 'add', value = 1 }}]"
        )
    };
    assert_eq!(Spec::parse_all_toml(&spec(true)).unwrap().len(), 2);
    let e = Spec::parse_toml(&spec(false)).unwrap_err();
    assert!(e.is_input() && e.to_string().contains("the same as intervention 1"), "{e}");
}

#[test]
fn toml_and_json_say_the_same() {
    let toml = r#"
        sae = "sae"

        [[interventions]]
        feature = 228
        action = "clamp_when_active"
        value = 0.1
        gate = 477
        range = ["-inf", 60]
        band = 0.5

        [[interventions]]
        feature = 3
        action = "expr"
        expr = "-relu(z) * step(z_12 - 1/3)"
        write = 4
        direction = "decoder"

        [host]
        source = "gelu_tanh"
        form = "plain"
        format = "bf16"
        biases = false

        [budget]
        tolerance = 1e-2
        band = 0
        neurons = 8
        max_weight = 1024
        max_out = 2.5
        max_total = 40
        inert = true

        [domain]
        range = [-100, 140.5]
        norm = 250
    "#;
    let json = r#"{
        "sae": "sae",
        "interventions": [
            {"feature": 228, "action": "clamp_when_active", "value": 0.1, "gate": 477, "range": ["-inf", 60], "band": 0.5},
            {"feature": 3, "action": "expr", "expr": "-relu(z) * step(z_12 - 1/3)", "write": 4, "direction": "decoder"}
        ],
        "host": {"source": "gelu_tanh", "form": "plain", "format": "bf16", "biases": false},
        "budget": {"tolerance": 0.01, "band": 0, "neurons": 8, "max_weight": 1024, "max_out": 2.5, "max_total": 40, "inert": true},
        "domain": {"range": [-100, 140.5], "norm": 250}
    }"#;
    let spec = Spec::parse_toml(toml).unwrap();
    assert_eq!(spec, Spec::parse_json(json).unwrap());
    let [first, second] = &spec.interventions[..] else { panic!("two entries") };
    assert_eq!(first.action, Action::ClampWhenActive(Number::ratio(1, 10)));
    assert_eq!(
        (first.when.as_deref(), &first.write, first.activation),
        (Some("a_477 > 0"), &Subject::Feature(228), None)
    );
    assert_eq!((spec.range_of(first), spec.band_of(first)), (Interval::new(f64::NEG_INFINITY, 60.0), 0.5));
    assert_eq!((spec.range_of(second), spec.band_of(second)), (Interval::new(-100.0, 140.5), 0.0));
    assert_eq!((&second.write, second.direction), (&Subject::Feature(4), Direction::Decoder));
    assert_eq!(spec.features().unwrap(), [3, 4, 12, 228, 477]);
    assert_eq!(
        spec.host,
        Host {
            source: Activation::GeluTanh,
            form: Form::Plain,
            format: Format::Bf16,
            biases: false,
            arithmetic: vec![]
        }
    );
    let limits = Budget { max_weight: 1024.0, max_out: 2.5, max_total: 40.0, ..Budget::default() };
    assert_eq!(spec.budget, Budget { tolerance: 0.01, band: 0.0, neurons: 8, inert: true, ..limits });
    assert_eq!(spec.domain.norm, Some(250.0));
}

#[test]
fn an_sae_is_a_path_or_a_table() {
    let parse =
        |sae: &str| Spec::parse_toml(&format!("sae = {sae}\ninterventions = [{{ feature = 1, action = 'ablate' }}]"));
    assert_eq!(parse("'s'").unwrap().sae_options, SaeOptions::default());
    let spec = parse("{ path = 's', layout = 'sparsify', threshold = 0.5, norm_scaling_factor = 2 }").unwrap();
    assert_eq!(spec.sae, Some(PathBuf::from("s")));
    let options =
        SaeOptions { layout: Some(crate::sae::Layout::Sparsify), threshold: Some(0.5), norm_scaling_factor: Some(2.0) };
    assert_eq!(spec.sae_options, options);
    for (sae, said) in [
        ("{ path = 's', layout = 'sparsfy' }", "sae: unknown layout 'sparsfy'\n  help: did you mean 'sparsify'?"),
        ("{ path = 's', threshold = -1 }", "sae: threshold must be finite and at least 0, not -1"),
        ("{ path = 's', norm_scaling_factor = 0 }", "sae: norm_scaling_factor must be positive"),
        ("{ path = 's', treshold = 1 }", "did you mean 'threshold'?"),
        ("{ layout = 'saelens' }", "missing field 'path'"),
        ("3", "the path of an SAE, or { path"),
    ] {
        let e = parse(sae).unwrap_err().to_string();
        assert!(e.contains(said), "{e}");
    }
}

#[test]
fn defaults() {
    let spec = Spec::parse_toml("sae = 's'\ninterventions = [{ feature = 1, action = 'ablate' }]").unwrap();
    assert_eq!((spec.host, spec.budget, spec.domain), (Host::default(), Budget::default(), Domain::default()));
    assert_eq!(spec.interventions[0].write, Subject::Feature(1));
}

#[test]
fn values_are_what_was_written() {
    for (written, exact) in [
        ("0.1", "1/10"),
        ("'0.1'", "1/10"),
        ("38.6", "193/5"),
        ("-3", "-3"),
        ("1e-7", "1/10000000"),
        ("1e300", "1e300"),
        ("'1/3'", "1/3"),
        ("'0.12345678901234567890'", "0.1234567890123456789"),
    ] {
        assert_eq!(one(&format!("action = 'cap'\nvalue = {written}")).unwrap().action, Action::Cap(number(exact)));
    }
    for written in ["nan", "inf", "-inf", "'abc'", "true", "[1]", "'1/0'", "'1e999'", "{}"] {
        assert!(one(&format!("action = 'cap'\nvalue = {written}")).is_err(), "{written}");
    }
}

#[test]
fn responses() {
    let v = || number("8");
    let theta = Number::from_f64(0.75).unwrap();
    for (action, jumprelu, relu) in [
        (Action::Ablate, "-(jumprelu(z, 0.75))", "-(relu(z))"),
        (Action::Clamp(v()), "8 - jumprelu(z, 0.75)", "8 - relu(z)"),
        (Action::ClampWhenActive(v()), "(8 - z) * step(z - 0.75)", "(8 - z) * step(z)"),
        (Action::Cap(v()), "-(relu(jumprelu(z, 0.75) - 8))", "-(relu(relu(z) - 8))"),
        (Action::Cap(number("-1/3")), "-(relu(jumprelu(z, 0.75) + 1/3))", "-(relu(relu(z) + 1/3))"),
        (Action::Floor(v()), "relu(8 - jumprelu(z, 0.75))", "relu(8 - relu(z))"),
        (Action::Scale(number("0.1")), "(-0.9) * jumprelu(z, 0.75)", "(-0.9) * relu(z)"),
        (Action::Add(number("-2.5")), "-2.5", "-2.5"),
        (Action::AddWhenActive(number("1/3")), "(1/3) * step(z - 0.75)", "(1/3) * step(z)"),
        (Action::Expr("z_4".into()), "z_4", "z_4"),
    ] {
        assert_eq!(action_expr(&action, &theta, Gating::JumpRelu), jumprelu);
        assert_eq!(action_expr(&action, &theta, Gating::Relu), relu);
    }
    let step = |theta: &str| action_expr(&Action::AddWhenActive(v()), &number(theta), Gating::JumpRelu);
    assert_eq!((step("0"), step("-1.5")), ("(8) * step(z)".into(), "(8) * step(z + 1.5)".into()));
}

#[test]
fn thresholds_are_printed_exactly() {
    let theta = Number::from_f64(f64::from(1.733_91_f32)).unwrap();
    let text = action_expr(&Action::Ablate, &theta, Gating::JumpRelu);
    let printed: Number = text["-(jumprelu(z, ".len()..text.len() - 2].parse().unwrap();
    assert_eq!(printed, theta);
}

#[test]
fn variables_of_expressions() {
    let all = variables("z_477*relu(z) + a_3-z_477 + xz_5 + z_x1 + z_ + a_the_axis - z_1x").unwrap();
    let of = |name: &str| Subject::Vector(name.into());
    assert_eq!(
        all.into_iter().collect::<Vec<_>>(),
        [Subject::Feature(3), Subject::Feature(477), of("the_axis"), of("x1")]
    );
    assert!(variables("z_99999999999999999999999").unwrap_err().to_string().contains("too large"));
}

#[test]
fn entries_that_contradict_themselves() {
    for (entry, said) in [
        ("action = 'cap'", "needs a value"),
        ("action = 'ablate'\nvalue = 1", "takes no value"),
        ("action = 'expr'", "needs an expression"),
        ("action = 'expr'\nexpr = ' '", "needs an expression"),
        ("action = 'expr'\nexpr = 'z'\nvalue = 1", "takes no value"),
        ("action = 'cap'\nvalue = 1\nexpr = 'z'", "takes no expr"),
        ("action = 'expr'\nexpr = 'z_99999999999999999999'", "too large"),
        ("action = 'ablat'", "did you mean \"ablate\"?"),
        ("action = 'quux'", "admissible: \"ablate\""),
        ("action = 'ablate'\ndirection = 'decodr'", "did you mean \"decoder\"?"),
        ("action = 'ablate'\nactivation = 'gelu'", "activation = 'gelu' is not known"),
        ("action = 'add'\nvalue = 1\nactivation = 'relu'", "leave activation out"),
        ("action = 'ablate'\ndirection = 'decoder'\nactivation = 'jumprelu'", "has no threshold"),
        ("action = 'ablate'\ngate = 7", "gate is the feature itself"),
        ("action = 'ablate'\nrange = [2, 1]", "range = [2, 1] is reversed"),
        ("action = 'ablate'\nrange = [1, 1]", "range = [1, 1] is empty"),
        ("action = 'ablate'\nrange = ['inf', 'inf']", "is empty"),
        ("action = 'ablate'\nband = -1", "band must be finite and at least 0, not -1"),
        ("action = 'ablate'\nband = nan", "not NaN"),
    ] {
        let e = one(entry).expect_err(entry);
        assert!(e.is_input() && e.to_string().contains(said), "{e}");
        assert!(e.to_string().starts_with("intervention 1 (feature 7): "), "{e}");
    }
}

#[test]
fn tables_with_impossible_numbers() {
    let entry = "sae = 's'\n[[interventions]]\nfeature = 1\naction = 'ablate'\n";
    for (table, said) in [
        ("[budget]\ntolerance = -1e-3", "budget: tolerance must be finite and at least 0, not -0.001"),
        ("[budget]\ntolerance = nan", "not NaN"),
        ("[budget]\nneurons = 0", "budget: neurons must be 1 to 65536, not 0"),
        ("[budget]\nneurons = 9000000000000000000", "neurons must be 1 to"),
        ("[budget]\nmax_weight = 0", "max_weight must be positive"),
        ("[budget]\nmax_out = inf", "max_out must be positive and finite, not inf"),
        ("[domain]\nrange = [1, -1]", "domain: range = [1, -1] is reversed"),
        ("[domain]\nrange = [nan, 1]", "NaN"),
        ("[domain]\nrange = ['minus', 1]", "'minus' is no number"),
        ("[domain]\nnorm = 0", "domain: norm must be positive and finite, not 0"),
        ("[host]\nsource = 'sillu'", "did you mean 'silu'?"),
        ("[host]\nform = 'gate'", "did you mean \"gated\"?"),
        ("[host]\nformat = 'fp8'", "host: format = 'fp8' is not known"),
    ] {
        let text = refusal(&format!("{entry}{table}"));
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn unknown_and_missing_fields() {
    let text = refusal("sae = 's'\n[[interventions]]\nfeature = 1\nacton = 'ablate'\n");
    assert!(
        text.starts_with("line 4, column 1: unknown field 'acton'") && text.contains("did you mean 'action'?"),
        "{text}"
    );
    assert!(refusal("sea = 's'\ninterventions = []").contains("did you mean 'sae'?"));
    assert!(refusal("interventions = []").contains("interventions is empty"));
    assert!(
        refusal("[[interventions]]\nfeature = 1\naction = 'ablate'")
            .contains("missing field 'sae': feature 1 is one of")
    );
    assert!(refusal("sae = 's'").contains("missing field 'interventions'"));
    assert!(refusal("sae = 's'\ninterventions = []").contains("interventions is empty"));
    assert!(refusal("sae = ''\ninterventions = []").contains("sae is empty"));
    assert!(refusal("sae = 's'\n[[interventions]]\nfeature = -1\naction = 'ablate'").contains("-1"));
    assert!(refusal("sae = [").contains("line 1"));
    let json = Spec::parse_json("{\"sae\": \"s\",\n \"budgt\": {}}").unwrap_err().to_string();
    assert!(
        json.starts_with("line 2, column ") && json.contains("did you mean 'budget'?") && !json.contains("at line"),
        "{json}"
    );
    assert!(Spec::parse_json(&"[".repeat(100_000)).is_err());
    assert!(Spec::parse_toml(&format!("a = {}", "[".repeat(100_000))).is_err());
}

#[test]
fn files() {
    let dir = tempfile::tempdir().unwrap();
    let text = "sae = 'data/sae'\ninterventions = [{ feature = 1, action = 'ablate' }]";
    let path = dir.path().join("a.toml");
    std::fs::write(&path, text).unwrap();
    assert_eq!(Spec::read(&path).unwrap().sae, Some(dir.path().join("data/sae")));
    let absolute = std::env::temp_dir().join("sae");
    std::fs::write(&path, text.replace("data/sae", &absolute.display().to_string())).unwrap();
    assert_eq!(Spec::read(&path).unwrap().sae, Some(absolute));
    assert!(Spec::read(dir.path().join("none.json")).unwrap_err().is_io());
    assert!(Spec::read(dir.path().join("a.yaml")).unwrap_err().to_string().contains(".toml or .json"));
    std::fs::write(&path, [0xff]).unwrap();
    assert!(Spec::read(&path).unwrap_err().to_string().contains("not UTF-8"));
}

const SEED: &str = "sae = 's'\n[[interventions]]\nfeature = 7\naction = 'cap'\nvalue = 0.1\nrange = ['-inf', 60]\n[budget]\nneurons = 8\n";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn damaged_specifications_are_read_or_refused(at in any::<prop::sample::Index>(), with in "\\PC?|[0-9\\[\\]\"'=.e\n-]{0,3}") {
        let mut text = SEED.to_string();
        let at = at.index(text.len());
        text.replace_range(at..=at, &with);
        if let Ok(spec) = Spec::parse_toml(&text) {
            let _ = (spec.features(), spec.interventions[0].label());
        }
        let _ = Spec::parse_json(&text);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
        let _ = (Spec::parse_toml(&text), Spec::parse_json(&text), variables(&text));
    }

    #[test]
    fn floats_mean_their_shortest_decimal(x in proptest::num::f64::NORMAL) {
        let spec = one(&format!("action = 'add'\nvalue = {x:e}")).unwrap();
        let Action::Add(v) = spec.action else { panic!("add") };
        prop_assert_eq!(v.to_f64(), x);
        prop_assert_eq!(v, format!("{x:e}").parse().unwrap());
    }
}
