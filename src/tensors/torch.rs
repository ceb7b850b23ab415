//! The tensors of a state dictionary that `torch.save` wrote, without running anything that the file says.
//!
//! Such a file is a ZIP archive: `NAME/data.pkl` is a pickle that names each tensor's storage, shape and strides, and
//! `NAME/data/KEY` holds a storage's bytes (PyTorch's `torch/serialization.py`, `_save`; `torch/_utils.py`,
//! `_rebuild_tensor_v2`). A pickle is a program for a stack machine, and Python's reader lets it call any function. The one
//! here knows the instructions that a state dictionary takes (Python's `Lib/pickletools.py`), builds plain values, and
//! calls nothing: a tensor is what `_rebuild_tensor_v2` is *asked* to build. Whatever else a pickle wants is refused.

use std::collections::HashMap;

use super::zip::Stored;
use super::{Entry, quoted};
use crate::error::{Error, Result};
use crate::format::Format;

/// Legacy files (PyTorch before 1.6) begin with a bare pickle of protocol 2.
pub(super) const LEGACY: &[u8] = &[0x80, 0x02];

/// What to do with a pickle that is more than a state dictionary.
const CONVERT: &str =
    "convert it where you trust it: safetensors.torch.save_file(sae.state_dict(), \"sae.safetensors\")";

/// More values than any state dictionary's pickle makes.
const MOST_VALUES: usize = 1 << 20;

/// Deeper dictionaries of tensors are not searched.
const DEEPEST: usize = 8;

pub(super) fn legacy() -> Error {
    Error::unsupported("a PyTorch file of the kind before version 1.6")
        .help("save it again: torch.save(torch.load(FILE, weights_only=True), FILE)")
}

/// Is this an archive that `torch.save` wrote? Its pickle, if so.
pub(super) fn pickle(files: &[Stored]) -> Option<&Stored> {
    files.iter().find(|f| f.name == "data.pkl" || f.name.ends_with("/data.pkl"))
}

/// The tensors of an archive. Those of nested dictionaries have their keys joined by dots.
pub(super) fn entries(bytes: &[u8], files: &[Stored], pickle: &Stored) -> Result<Vec<Entry>> {
    let folder = pickle.name.trim_end_matches("data.pkl");
    if let Some(order) = files.iter().find(|f| f.name.strip_prefix(folder) == Some("byteorder"))
        && &bytes[order.span.clone()] != b"little"
    {
        return Err(Error::unsupported("a big-endian PyTorch file").help("save it again on a little-endian machine"));
    }
    let prefix = format!("{folder}data/");
    let storages: HashMap<&str, &Stored> =
        files.iter().filter_map(|f| Some((f.name.strip_prefix(&prefix)?, f))).collect();
    let mut machine = Machine { bytes: &bytes[pickle.span.clone()], ..Machine::default() };
    let root = machine.run()?;
    let mut named = Vec::new();
    machine.collect(String::new(), root, 0, &mut named)?;
    if named.is_empty() {
        return Err(Error::input("the file holds no tensors")
            .help("save the state dictionary: torch.save(sae.state_dict(), FILE)"));
    }
    named.iter().map(|(name, tensor)| place(name, &machine.tensors[*tensor], &storages)).collect()
}

/// Where a tensor lies in the file.
fn place(name: &str, tensor: &Tensor<'_>, storages: &HashMap<&str, &Stored>) -> Result<Entry> {
    let wrong = |what: &str| Error::input(format!("tensor {}: {what}", quoted(name)));
    let storage = &tensor.storage;
    let stored = storages.get(storage.key).ok_or_else(|| wrong("its storage is not in the archive"))?;
    let (format, size) = match storage.kind {
        "HalfStorage" => (Ok(Format::F16), 2),
        "BFloat16Storage" => (Ok(Format::Bf16), 2),
        "FloatStorage" => (Ok(Format::F32), 4),
        "DoubleStorage" => (Ok(Format::F64), 8),
        other => (Err(other.trim_end_matches("Storage").to_string()), 1),
    };
    if tensor.shape.len() != tensor.strides.len() {
        return Err(wrong("its shape and strides do not agree"));
    }
    // An expanded tensor (stride 0) may claim any number of values: it must not have more than its storage.
    let bytes = stored.span.len();
    let count = tensor.shape.iter().try_fold(1usize, |n, d| n.checked_mul((*d).max(1)));
    let count = count.filter(|n| *n <= bytes.max(1)).ok_or_else(|| wrong("it has more values than its storage"))?;
    let last = tensor
        .shape
        .iter()
        .zip(&tensor.strides)
        .try_fold(tensor.offset, |at, (n, stride)| at.checked_add(n.saturating_sub(1).checked_mul(*stride)?));
    let start = tensor.offset.checked_mul(size);
    let end = last.and_then(|l| l.checked_add(1)?.checked_mul(size)).filter(|end| *end <= bytes);
    let empty = tensor.shape.contains(&0);
    let (start, end) = match (start, end) {
        (Some(start), Some(end)) if format.is_ok() && !empty && count * size <= bytes => (start, end),
        // What is not read needs no place.
        _ if format.is_err() || empty => (0, 0),
        _ => return Err(wrong("it lies outside of its storage")),
    };
    Ok(Entry {
        name: name.to_string(),
        format,
        shape: tensor.shape.clone(),
        strides: tensor.strides.clone(),
        span: stored.span.start + start..stored.span.start + end,
    })
}

/// A storage: its kind (`FloatStorage`) and the name of its file in the archive.
#[derive(Clone, Copy, Debug)]
struct Storage<'a> {
    kind: &'a str,
    key: &'a str,
}

#[derive(Debug)]
struct Tensor<'a> {
    storage: Storage<'a>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// What the machine handles. Tuples, dictionaries and tensors are places in lists of the machine's: however deep a hostile
/// pickle nests them, dropping them takes no recursion.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Mark,
    /// none, floats, lists, and whatever else has no say in where tensors lie
    Other,
    Int(i64),
    Text(&'a str),
    Tuple(usize),
    Dict(usize),
    /// a module and a name in it: never looked up
    Global(&'a str, &'a str),
    Storage(Storage<'a>),
    Tensor(usize),
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    made: usize,
    stack: Vec<Value<'a>>,
    memo: HashMap<u32, Value<'a>>,
    tuples: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    tensors: Vec<Tensor<'a>>,
}

impl<'a> Machine<'a> {
    /// The tensors of a value with their names.
    fn collect(
        &mut self,
        name: String,
        value: Value<'a>,
        depth: usize,
        found: &mut Vec<(String, usize)>,
    ) -> Result<()> {
        // Dictionaries may hold one another: each look counts.
        self.count()?;
        match value {
            Value::Tensor(tensor) => found.push((name, tensor)),
            Value::Dict(dict) if depth < DEEPEST => {
                for k in 0..self.dicts[dict].len() {
                    if let (Value::Text(key), value) = self.dicts[dict][k] {
                        let name = if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
                        self.collect(name, value, depth + 1, found)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn count(&mut self) -> Result<()> {
        self.made += 1;
        if self.made <= MOST_VALUES {
            return Ok(());
        }
        Err(Error::input(format!("data.pkl makes more than {MOST_VALUES} values: no state dictionary")))
    }

    fn run(&mut self) -> Result<Value<'a>> {
        loop {
            let at = self.at;
            match self.step() {
                Some(Ok(None)) => {}
                Some(Ok(Some(value))) => return Ok(value),
                Some(Err(e)) => return Err(e.at(format!("byte {at} of data.pkl"))),
                None => return Err(Error::input(format!("damaged: byte {at} of data.pkl"))),
            }
            self.count()?;
        }
    }

    /// One instruction; the result where it is the last. `None`: the pickle is damaged.
    fn step(&mut self) -> Option<Result<Option<Value<'a>>>> {
        let code = self.take(1)?[0];
        match code {
            0x80 => drop(self.take(1)?),                // PROTO
            0x95 => drop(self.take(8)?),                // FRAME
            b'.' => return Some(Ok(Some(self.pop()?))), // STOP
            b'(' => self.push(Value::Mark),
            b'0' => drop(self.pop()?), // POP
            b'N' => self.push(Value::Other),
            0x88 => self.push(Value::Int(1)), // NEWTRUE
            0x89 => self.push(Value::Int(0)), // NEWFALSE
            b'J' => {
                let n = i32::from_le_bytes(self.take(4)?.try_into().ok()?);
                self.push(Value::Int(n.into()));
            }
            b'K' => {
                let n = self.take(1)?[0];
                self.push(Value::Int(n.into()));
            }
            b'M' => {
                let n = u16::from_le_bytes(self.take(2)?.try_into().ok()?);
                self.push(Value::Int(n.into()));
            }
            0x8a => self.long()?,
            b'G' => {
                self.take(8)?; // BINFLOAT
                self.push(Value::Other);
            }
            b'X' => {
                let n = u32::from_le_bytes(self.take(4)?.try_into().ok()?);
                self.text(n.into())?;
            }
            0x8c => {
                let n = self.take(1)?[0];
                self.text(n.into())?;
            }
            0x8d => {
                let n = u64::from_le_bytes(self.take(8)?.try_into().ok()?);
                self.text(n)?;
            }
            b')' => self.tuple(Vec::new()),
            b't' => {
                let items = self.since_mark()?;
                self.tuple(items);
            }
            0x85..=0x87 => {
                let items = self.stack.split_off(self.stack.len().checked_sub(usize::from(code - 0x84))?);
                self.tuple(items);
            }
            b'}' => self.dict(),
            b']' => self.push(Value::Other),
            b'a' => drop(self.pop()?),        // APPEND
            b'e' => drop(self.since_mark()?), // APPENDS
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set([key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                for pair in items.chunks_exact(2) {
                    self.set([pair[0], pair[1]])?;
                }
            }
            b'b' => drop(self.pop()?), // BUILD: a state dictionary's `_metadata`
            b'q' => {
                let key = self.take(1)?[0];
                self.memo.insert(key.into(), *self.stack.last()?);
            }
            b'r' => {
                let key = u32::from_le_bytes(self.take(4)?.try_into().ok()?);
                self.memo.insert(key, *self.stack.last()?);
            }
            0x94 => {
                let key = u32::try_from(self.memo.len()).ok()?;
                self.memo.insert(key, *self.stack.last()?);
            }
            b'h' => {
                let key = self.take(1)?[0];
                self.push(*self.memo.get(&key.into())?);
            }
            b'j' => {
                let key = u32::from_le_bytes(self.take(4)?.try_into().ok()?);
                self.push(*self.memo.get(&key)?);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(module, name));
            }
            0x93 => {
                let (Value::Text(name), Value::Text(module)) = (self.pop()?, self.pop()?) else { return None };
                self.push(Value::Global(module, name));
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(Value::Storage(storage));
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                match self.call(function, arguments)? {
                    Ok(value) => self.push(value),
                    Err(e) => return Some(Err(e)),
                }
            }
            _ => {
                return Some(Err(Error::unsupported(format!(
                    "the pickle uses instruction 0x{code:02x}, which no state dictionary needs"
                ))
                .help(CONVERT)));
            }
        }
        Some(Ok(None))
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn line(&mut self) -> Option<&'a str> {
        let rest = self.bytes.get(self.at..)?;
        let end = rest.iter().position(|b| *b == b'\n')?;
        let text = std::str::from_utf8(&rest[..end]).ok()?;
        self.at += end + 1;
        Some(text)
    }

    fn text(&mut self, length: u64) -> Option<()> {
        let text = std::str::from_utf8(self.take(usize::try_from(length).ok()?)?).ok()?;
        self.push(Value::Text(text));
        Some(())
    }

    /// LONG1: a little-endian integer in two's complement.
    fn long(&mut self) -> Option<()> {
        let count = self.take(1)?[0];
        let bytes = self.take(count.into())?;
        if bytes.len() > 8 {
            self.push(Value::Other);
            return Some(());
        }
        let filler = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [filler; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)));
        Some(())
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(value);
    }

    fn pop(&mut self) -> Option<Value<'a>> {
        self.stack.pop()
    }

    fn since_mark(&mut self) -> Option<Vec<Value<'a>>> {
        let mark = self.stack.iter().rposition(|v| matches!(v, Value::Mark))?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Some(items)
    }

    fn tuple(&mut self, items: Vec<Value<'a>>) {
        self.tuples.push(items);
        self.push(Value::Tuple(self.tuples.len() - 1));
    }

    fn dict(&mut self) {
        self.dicts.push(Vec::new());
        self.push(Value::Dict(self.dicts.len() - 1));
    }

    /// Sets an entry of the dictionary on top.
    fn set(&mut self, [key, value]: [Value<'a>; 2]) -> Option<()> {
        let Value::Dict(dict) = self.stack.last()? else { return None };
        self.dicts[*dict].push((key, value));
        Some(())
    }

    /// What a call is asked to make. `None`: its arguments are not those that `torch.save` writes.
    fn call(&mut self, function: Value<'a>, arguments: Value<'a>) -> Option<Result<Value<'a>>> {
        let (Value::Global(module, name), Value::Tuple(arguments)) = (function, arguments) else { return None };
        let arguments = &self.tuples[arguments];
        Some(Ok(match (module, name) {
            ("collections", "OrderedDict") if arguments.is_empty() => {
                self.dicts.push(Vec::new());
                Value::Dict(self.dicts.len() - 1)
            }
            ("torch._utils", "_rebuild_tensor_v2") => {
                let tensor = self.tensor(arguments)?;
                self.tensors.push(tensor);
                Value::Tensor(self.tensors.len() - 1)
            }
            // A parameter is its tensor.
            ("torch._utils", "_rebuild_parameter") => *arguments.first().filter(|v| matches!(v, Value::Tensor(_)))?,
            _ => {
                let asked = quoted(&format!("{module}.{name}"));
                return Some(Err(Error::unsupported(format!(
                    "the pickle calls {asked}, which no state dictionary needs"
                ))
                .help(CONVERT)));
            }
        }))
    }

    /// `_rebuild_tensor_v2(storage, storage_offset, size, stride, ...)`.
    fn tensor(&self, arguments: &[Value<'a>]) -> Option<Tensor<'a>> {
        let &[Value::Storage(storage), Value::Int(offset), Value::Tuple(shape), Value::Tuple(strides), ..] = arguments
        else {
            return None;
        };
        let numbers = |tuple: usize| -> Option<Vec<usize>> {
            let number = |v: &Value<'_>| if let Value::Int(n) = v { usize::try_from(*n).ok() } else { None };
            self.tuples[tuple].iter().map(number).collect()
        };
        Some(Tensor {
            storage,
            offset: usize::try_from(offset).ok()?,
            shape: numbers(shape)?,
            strides: numbers(strides)?,
        })
    }

    /// `("storage", torch.FloatStorage, key, device, number of values)`.
    fn storage(&self, id: Value<'a>) -> Option<Storage<'a>> {
        let Value::Tuple(parts) = id else { return None };
        match self.tuples[parts][..] {
            [Value::Text("storage"), Value::Global("torch", kind), Value::Text(key), ..] => Some(Storage { kind, key }),
            _ => None,
        }
    }
}
