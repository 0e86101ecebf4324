// The list of songs and their timelines. Data comes from the page itself: see payload.py.
'use strict';
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId('data').textContent);
  const told = new Map(data.timelines.songs.map((row, line) => [row, line]));
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const score = data.score.map(bytes);
  const sure = data.sure.map(bytes);
  const n = data.ids.length;
  const PAGE = 24;

  // Small words.

  const names = (found) => [].concat(found).map((k) => data.classes[k]).join(', ') || 'none';
  const percent = (byte) => `${Math.round(byte / 2.55)} %`;
  const right = (method, row) => score[method][row] === 255;
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  // A name in any script, which must not turn round what stands beside it.
  const named = (text, style = '') => make('bdi', { dir: 'auto', class: style }, text);
  const signed = (x, digits = 1) => (x < 0 ? '\u2212' : '+') + Math.abs(x).toFixed(digits);

  // What is shown of the songs.

  const state = { search: '', filter: 'all', sort: 'order', falling: false, page: 0, open: -1 };
  let method = data.favourite === data.averaging ? (data.averaging + 1) % data.methods.length : data.favourite;
  let rows = [];
  const base = data.averaging;
  const better = (a, b) => (row) => score[a][row] > score[b][row];
  const filters = () => {
    const all = { all: ['all songs', () => true] };
    const who = data.methods[method];
    if (base >= 0 && base !== method) {
      const verb = data.multilabel ? 'better' : 'right';
      all.gain = [`${who} ${verb}, averaging ${data.multilabel ? 'worse' : 'wrong'}`, better(method, base)];
      all.loss = [`averaging ${verb}, ${who} ${data.multilabel ? 'worse' : 'wrong'}`, better(base, method)];
    }
    if (!data.multilabel) all.lost = ['all methods wrong', (row) => score.every((of) => of[row] === 0)];
    all.told = ['with a timeline', (row) => told.has(row)];
    return all;
  };
  const columns = () => {
    const shown = [...new Set([base, method])].filter((m) => m >= 0);
    return [
      { key: 'id', text: 'song', of: (row) => data.ids[row] },
      { key: 'label', text: 'label', of: (row) => names(data.label[row]) },
      ...(data.frames ? [{ key: 'frames', text: 'frames', extra: true, of: (row) => data.frames[row] }] : []),
      // From surely right to surely wrong.
      ...shown.map((m) => ({
        key: `m${m}`, text: data.methods[m] + (data.multilabel ? ', LRAP' : ''), method: m,
        of: (row) => (data.multilabel ? score[m][row] : (right(m, row) ? 1 : -1) * sure[m][row]),
      })),
    ];
  };

  const select = () => {
    const wanted = state.search.trim().toLowerCase();
    const kept = (filters()[state.filter] || filters().all)[1];
    rows = [];
    for (let row = 0; row < n; row += 1) {
      const found = !wanted || data.ids[row].toLowerCase().includes(wanted)
        || names(data.label[row]).toLowerCase().includes(wanted);
      if (found && kept(row)) rows.push(row);
    }
    const column = columns().find((c) => c.key === state.sort);
    if (column) {
      const key = new Map(rows.map((row) => [row, column.of(row)]));
      const compare = new Intl.Collator(undefined, { numeric: true }).compare;
      const order = (a, b) => (typeof key.get(a) === 'string' ? compare(key.get(a), key.get(b)) : key.get(a) - key.get(b));
      rows.sort((a, b) => (state.falling ? -order(a, b) : order(a, b)) || a - b);
    }
    state.page = 0;
  };

  const answer = (m, row) => {
    const cell = make('td');
    if (data.multilabel) {
      cell.append(named(names(data.said[m][row]), 'text'), ` ${percent(score[m][row])}`);
      return cell;
    }
    const good = right(m, row);
    cell.append(
      make('span', { class: good ? 'right' : 'wrong' }, good ? '\u2713' : '\u2717',
        make('span', { class: 'hidden' }, good ? ' right: ' : ' wrong: ')),
      ' ', named(names(data.said[m][row]), 'text'), ` ${percent(sure[m][row])}`,
    );
    return cell;
  };

  const drawList = () => {
    const head = byId('list').tHead.rows[0];
    head.replaceChildren(...columns().map((column) => {
      const sorted = state.sort === column.key;
      const cell = make('th', { scope: 'col', class: column.extra ? 'extra' : '' }, make('button', { type: 'button' }, column.text));
      if (sorted) cell.setAttribute('aria-sort', state.falling ? 'descending' : 'ascending');
      cell.firstChild.addEventListener('click', () => {
        // Numbers are looked at from the top.
        const first = column.key !== 'id' && column.key !== 'label';
        state.falling = sorted ? !state.falling : first;
        state.sort = column.key;
        select();
        drawList();
        byId('list').tHead.rows[0].cells[columns().indexOf(columns().find((c) => c.key === column.key))]
          ?.querySelector('button').focus();
      });
      return cell;
    }));
    const first = state.page * PAGE;
    const shown = rows.slice(first, first + PAGE);
    byId('list').tBodies[0].replaceChildren(...shown.map((row) => {
      const link = make('a', { href: `#song=${row}`, class: 'name', 'data-row': row }, named(data.ids[row]));
      const line = make('tr', row === state.open ? { 'aria-current': 'true' } : {}, make('th', { scope: 'row' }, link));
      for (const column of columns().slice(1)) {
        if ('method' in column) line.append(answer(column.method, row));
        else line.append(make('td', { class: column.extra ? 'extra' : '' }, column.key === 'label' ? named(column.of(row), 'text') : String(column.of(row))));
      }
      line.addEventListener('click', (event) => { if (!event.target.closest('a')) location.hash = `song=${row}`; });
      return line;
    }));
    byId('range').textContent = rows.length
      ? `${first + 1} to ${first + shown.length} of ${rows.length} songs` : 'no song';
    byId('before').disabled = state.page === 0;
    byId('after').disabled = first + PAGE >= rows.length;
  };

  const drawChoices = () => {
    byId('filter').replaceChildren(...Object.entries(filters()).map(([key, [text, kept]]) => {
      let count = 0;
      for (let row = 0; row < n; row += 1) count += kept(row);
      return make('option', key === state.filter ? { value: key, selected: '' } : { value: key }, `${text} (${count})`);
    }));
    state.filter = byId('filter').value;
  };

  const turnPage = (by) => {
    state.page = Math.max(0, Math.min(state.page + by, Math.ceil(rows.length / PAGE) - 1));
    drawList();
  };
  const focusRow = (place) => {
    if (place < 0 || place >= rows.length) return;
    state.page = Math.floor(place / PAGE);
    drawList();
    byId('list').querySelector(`a[data-row="${rows[place]}"]`).focus();
  };

  // A song.

  const SVG = 'http://www.w3.org/2000/svg';
  const draw = (tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };

  let lines = null;
  const unpack = (row) => {
    lines ||= byId('timelines').textContent.split('\n');
    const [frames, marks, seconds, cols, classes, toward, against, greatest, shuffled, text] =
      JSON.parse(lines[told.get(row)]);
    const ends = marks || Array.from({ length: frames }, (_, i) => i + 1);
    const size = ends.length;
    const all = bytes(text);
    let at = 0;
    const take = () => all.subarray(at, at += size);
    const { shown, paths, ends: [low, high], columns: columnNames } = data.timelines;
    const heat = cols.map((c) => ({ name: columnNames[c], x: Array.from(take(), (b) => low + ((high - low) * b) / 255) }));
    const belief = shown.map(() => classes.map(take));
    const contribution = shown.map((_, m) => Array.from(take(), (b) => ((b - 128) / 127) * greatest[m]));
    const path = paths.map(take).map((states, m) => ({ method: paths[m], states })).filter(({ states }) => states[0] !== 255);
    const starts = [0, ...ends.slice(0, -1)];
    const second = (frame) => {
      if (!seconds) return null;
      if (!Array.isArray(seconds)) return seconds.first + seconds.step * frame;
      return seconds[Math.max(0, starts.findLastIndex((s) => s <= frame))];
    };
    return { frames, ends, starts, second, heat, classes, toward, against, shown, shuffled, belief, contribution, greatest, path };
  };
  const clock = (t) => `${Math.floor(t / 60)}:${String(Math.floor(t % 60)).padStart(2, '0')}`;

  const kindOf = (song, k) => (k === song.toward ? 'toward' : k === song.against ? 'away' : 'third');

  const drawTimeline = (song, row, width) => {
    const truth = new Set([].concat(data.label[row]).map((k) => data.classes[k]));
    const left = width < 460 ? 84 : 104;
    const end = width - (width < 460 ? 56 : 84);
    const x = (frame) => left + ((end - left) * frame) / song.frames;
    const short = (text, most = width < 460 ? 9 : 13) => (text.length > most ? `${text.slice(0, most - 1)}\u2026` : text);
    const parts = [];
    const words = [];  // over everything else
    const put = (tag, ...rest) => (tag === 'text' ? words : parts).push(draw(tag, ...rest));
    let y = 14;
    const heading = (text, unit) => {
      const line = draw('text', { x: 0, y, class: 'head' }, text);
      line.append(draw('tspan', { class: 'unit', dx: 7 }, unit));
      words.push(line);
      y += 10;
    };
    const names_ = { toward: data.classes[song.toward], away: data.classes[song.against] };
    const kindOfName = (name) => Object.keys(names_).find((k) => names_[k] === name) || 'third';

    heading('Frames', 'log-odds, nats');
    for (const { name, x: values } of song.heat) {
      const style = `${kindOfName(name)}${truth.has(name) ? ' truth' : ''}`;
      put('text', { x: left - 6, y: y + 12, 'text-anchor': 'end', class: style }, (truth.has(name) ? '\u2605 ' : '') + short(name));
      put('rect', { x: left, y, width: end - left, height: 16, class: 'paper' });
      values.forEach((value, i) => {
        const [low, high] = data.timelines.ends;
        const shade = ((value - low) / (high - low)).toFixed(3);
        put('rect', { x: x(song.starts[i]), y, width: x(song.ends[i]) - x(song.starts[i]), height: 16, class: 'for', opacity: shade });
      });
      y += 17;
    }
    for (const { method: m, states } of song.path) {
      y += 4;
      put('text', { x: left - 6, y: y + 11, 'text-anchor': 'end', class: 'unit' }, `${short(m, 8)} state`);
      let from = 0;
      for (let i = 1; i <= states.length; i += 1) {
        if (i < states.length && states[i] === states[from]) continue;
        const [a, b] = [x(song.starts[from]), x(song.ends[i - 1])];
        put('rect', { x: a + 0.5, y, width: Math.max(1, b - a - 1), height: 14, rx: 2, fill: `var(--state${states[from] % 8})`, opacity: 0.85 });
        if (b - a > 12) put('text', { x: (a + b) / 2, y: y + 11, 'text-anchor': 'middle', class: 'state' }, String(states[from] + 1));
        from = i;
      }
      y += 16;
    }

    y += 24;
    heading('Belief so far', 'probability after the frames heard, %');
    y += 4;
    song.shown.forEach((m, s) => {
      const tall = 58;
      const at = (byte) => y + tall * (1 - byte / 255);
      for (const share of [0, 127.5, 255]) {
        put('line', { x1: left, x2: end, y1: at(share), y2: at(share), class: 'grid' });
        put('text', { x: left - 6, y: at(share) + 4, 'text-anchor': 'end', class: 'tick' }, Math.round(share / 2.55));
      }
      put('text', { x: 0, y: y + tall * 0.25 + 4, class: 'label' }, short(m, width < 460 ? 8 : 11));
      const ends = [];
      song.classes.forEach((k, c) => {
        const values = song.belief[s][c];
        const points = Array.from(values, (b, i) => `${x(song.ends[i]).toFixed(1)},${at(b).toFixed(1)}`);
        if (values.length === 1) points.unshift(`${left},${at(values[0]).toFixed(1)}`);
        put('polyline', { points: points.join(' '), class: `belief ${kindOf(song, k)}` });
        // Others that are drawn are not named: there is no room.
        if (kindOf(song, k) !== 'third' || truth.has(data.classes[k])) ends.push({ k, y: at(values[values.length - 1]) });
      });
      ends.sort((a, b) => a.y - b.y);
      ends.forEach((one, i) => { one.y = Math.max(one.y, i ? ends[i - 1].y + 12 : y - 2); });
      let lowest = y + tall + 4;
      ends.reverse().forEach((one) => {
        one.y = Math.min(one.y, lowest);
        lowest = one.y - 12;
        const name = data.classes[one.k];
        put('text', { x: end + 6, y: one.y + 4, class: `${kindOf(song, one.k)}${truth.has(name) ? ' truth' : ''}` }, (truth.has(name) ? '\u2605 ' : '') + short(name, width < 460 ? 7 : 11));
      });
      y += tall + 20;
    });

    y += 8;
    const pair = song.against < 0 ? `for ${short(names_.toward)}` : `for ${short(names_.toward)}, against ${short(names_.away)}`;
    heading('What each frame did', `${pair}, nats`);
    y += 4;
    song.shown.forEach((m, s) => {
      const tall = 40;
      const middle = y + tall / 2;
      const most = song.greatest[s] || 1;
      put('text', { x: 0, y: middle + 4, class: 'label' }, short(m, width < 460 ? 8 : 11));
      put('text', { x: left - 6, y: y + 6, 'text-anchor': 'end', class: 'tick' }, signed(most, 2));
      put('text', { x: left - 6, y: y + tall + 2, 'text-anchor': 'end', class: 'tick' }, signed(-most, 2));
      song.contribution[s].forEach((value, i) => {
        const high = (Math.abs(value) / most) * (tall / 2);
        put('rect', {
          x: x(song.starts[i]) + 0.5, y: value > 0 ? middle - high : middle,
          width: Math.max(1, x(song.ends[i]) - x(song.starts[i]) - 1), height: Math.max(0.5, high),
          class: value > 0 ? 'for' : 'against',
        });
      });
      put('line', { x1: left, x2: end, y1: middle, y2: middle, class: 'axis' });
      y += tall + 14;
    });

    put('line', { x1: left, x2: end, y1: y, y2: y, class: 'axis' });
    const count = width < 460 ? 4 : 6;
    const step = Math.max(1, Math.ceil(song.frames / count));
    for (let frame = 0; frame <= song.frames; frame += step) {
      const t = song.second(frame);
      put('line', { x1: x(frame), x2: x(frame), y1: y, y2: y + 4, class: 'axis' });
      put('text', { x: x(frame), y: y + 16, 'text-anchor': 'middle', class: 'tick' }, t === null ? String(frame) : clock(t));
    }
    put('text', { x: end + 6, y: y + 16, class: 'unit' }, song.second(0) === null ? 'frames' : 'min:s');
    y += 22;

    const now = draw('line', { x1: left, x2: left, y1: 18, y2: y - 22, class: 'now' });
    const sentence = `Timeline of ${data.ids[row]}: ${song.shown.map((m, s) => `${m} ends at ${percent(song.belief[s][0].at(-1))} for ${names_.toward}`).join(', ')}`;
    const svg = draw('svg', { viewBox: `0 0 ${width} ${y}`, width, height: y, role: 'img', 'aria-label': sentence });
    svg.append(...parts, now, ...words, draw('rect', { x: left, y: 18, width: end - left, height: y - 18, class: 'hit' }));
    const place = (clientX) => {
      const box = svg.getBoundingClientRect();
      const frame = (((clientX - box.left) * width) / box.width - left) / ((end - left) / song.frames);
      return Math.max(0, song.ends.findIndex((stop) => frame < stop));
    };
    const mark = (i) => {
      const at = (x(song.starts[i]) + x(song.ends[i])) / 2;
      now.setAttribute('x1', at);
      now.setAttribute('x2', at);
    };
    return { svg, place, mark, left, across: end - left };
  };

  const said = (song, i) => {
    const [a, b] = [song.starts[i] + 1, song.ends[i]];
    const t = song.second(song.starts[i]);
    const where = `${a === b ? `Frame ${a}` : `Frames ${a} to ${b}`}${t === null ? '' : ` (from ${clock(t)})`}`;
    const name = data.classes[song.toward];
    const heat = song.heat.slice(0, 3).map((h) => `${h.name} ${signed(h.x[i])}`).join(', ');
    const beliefs = song.shown.map((m, s) => `${m} ${percent(song.belief[s][0][i])}`).join(', ');
    return `${where}: log-odds ${heat}. Belief in ${name} by then: ${beliefs}.`;
  };

  const numbers = (song) => {
    const name = data.classes[song.toward];
    const head = ['frames', ...song.shown.map((m) => `${m}: ${name} so far, %`), ...song.shown.map((m) => `${m}: contribution, nats`)];
    const table = make('table', {}, make('caption', { class: 'hidden' }, 'Timeline in numbers'),
      make('thead', {}, make('tr', {}, ...head.map((text) => make('th', { scope: 'col' }, text)))), make('tbody'));
    song.ends.forEach((stop, i) => {
      const first = song.starts[i] + 1;
      table.tBodies[0].append(make('tr', {}, make('th', { scope: 'row' }, first === stop ? String(stop) : `${first} to ${stop}`),
        ...song.shown.map((_, s) => make('td', {}, String(Math.round(song.belief[s][0][i] / 2.55)))),
        ...song.shown.map((_, s) => make('td', {}, signed(song.contribution[s][i], 2)))));
    });
    const details = make('details', { class: 'numbers' }, make('summary', {}, 'Timeline in numbers'));
    details.append(make('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Timeline in numbers' }, table));
    return details;
  };

  const stateWords = (song) => song.path.map(({ method: m, states }) => {
    const means = new Map();
    states.forEach((state, i) => {
      if (!means.has(state)) means.set(state, song.heat.map(() => 0));
      song.heat.forEach((h, c) => { means.get(state)[c] += h.x[i]; });
    });
    const each = [...means].sort((a, b) => a[0] - b[0]).map(([state, sums]) =>
      `${state + 1}: ${song.heat[sums.indexOf(Math.max(...sums))].name}`);
    return `States of the ${m} on its likeliest path, and the column highest in each: ${each.join(', ')}.`;
  }).join(' ');

  const openSong = (row, scroll) => {
    state.open = row;
    const panel = byId('song');
    panel.redraw = null;
    const place = rows.indexOf(row);
    const turn = (by, text, sign) => {
      const button = make('button', { type: 'button', 'aria-label': text }, sign);
      const next = rows[place + by];
      button.disabled = next === undefined;
      button.addEventListener('click', () => { location.hash = `song=${next}`; });
      return button;
    };
    const title = make('h3', { id: 'song-title' }, named(data.ids[row]));
    const facts = make('p', { class: 'facts' }, 'label ', named(names(data.label[row])),
      data.frames ? ` \u00b7 ${data.frames[row]} frames` : '');
    const list = make('ul', { class: 'said' }, ...data.methods.map((m, i) => {
      const item = make('li', {}, make('span', { class: `key m${i}`, 'aria-hidden': 'true' }), `${m} `);
      item.append(...answer(i, row).childNodes);
      return item;
    }));
    panel.setAttribute('aria-label', data.ids[row]);
    panel.replaceChildren(make('div', { class: 'turn' }, turn(-1, 'Song before', '\u2191'), turn(1, 'Next song', '\u2193')), title, facts, list);
    if (!told.has(row)) {
      panel.append(make('p', { class: 'empty' }, 'This song has no timeline: see how many were kept above the list.'));
    } else {
      const song = unpack(row);
      const readout = make('p', { class: 'readout', 'aria-hidden': 'true' });
      const slider = make('input', { type: 'range', min: 0, max: song.ends.length - 1, value: 0, 'aria-label': 'Place in the song' });
      const holder = make('div');
      let drawn;
      const show = (i) => {
        drawn.mark(i);
        slider.value = i;
        readout.textContent = said(song, i);
        slider.setAttribute('aria-valuetext', readout.textContent);
      };
      const redraw = () => {
        const width = Math.max(280, Math.floor(panel.clientWidth - 40));
        drawn = drawTimeline(song, row, width);
        holder.replaceChildren(drawn.svg);
        Object.assign(slider.style, { marginLeft: `${(100 * drawn.left) / width}%`, width: `${(100 * drawn.across) / width}%` });
        drawn.svg.addEventListener('pointermove', (event) => show(drawn.place(event.clientX)));
        show(Number(slider.value));
      };
      const [low, high] = data.timelines.ends.map((end) => signed(end, 0));
      const legend = make('p', { class: 'legend' }, make('span', {}, 'log-odds ', low, make('span', { class: 'ramp' }), high, ' nats'),
        make('span', {}, '\u2605 the label'));
      const how = song.shown.map((m, s) => (song.shuffled[s] === null ? '' : `${m} ${Math.round(100 * song.shuffled[s])} %`)).filter(Boolean);
      const notes = make('p', { class: 'facts' }, stateWords(song), ' ',
        how.length ? `With its frames shuffled, ${data.classes[song.toward]} would get on average: ${how.join(', ')}.` : '');
      panel.append(legend, holder, slider, readout, notes, numbers(song));
      slider.addEventListener('input', () => show(Number(slider.value)));
      redraw();
      panel.redraw = redraw;
    }
    drawList();
    if (scroll) panel.scrollIntoView({ block: 'nearest' });
  };

  // What users do.

  const follow = () => {
    const found = /^#song=(\d+)$/.exec(location.hash);
    if (!found || Number(found[1]) >= n) return;
    const row = Number(found[1]);
    if (!rows.includes(row)) {
      Object.assign(state, { search: '', filter: 'all' });
      byId('search').value = '';
      drawChoices();
      select();
    }
    state.page = Math.floor(rows.indexOf(row) / PAGE);
    const inList = byId('list').contains(document.activeElement);
    openSong(row, true);
    if (inList) byId('list').querySelector(`a[data-row="${row}"]`).focus({ preventScroll: true });
  };
  byId('method').replaceChildren(...data.methods.map((m, i) => make('option', i === method ? { value: i, selected: '' } : { value: i }, m)));
  byId('method').addEventListener('change', (event) => {
    method = Number(event.target.value);
    if (state.sort.startsWith('m')) state.sort = 'order';
    drawChoices();
    select();
    drawList();
  });
  byId('filter').addEventListener('change', (event) => { state.filter = event.target.value; select(); drawList(); });
  byId('search').addEventListener('input', (event) => { state.search = event.target.value; select(); drawList(); });
  document.querySelector('.tools').addEventListener('submit', (event) => event.preventDefault());
  byId('before').addEventListener('click', () => turnPage(-1));
  byId('after').addEventListener('click', () => turnPage(1));
  byId('list').addEventListener('keydown', (event) => {
    const link = event.target.closest('a[data-row]');
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: PAGE, PageUp: -PAGE }[event.key];
    if (!link || !by) return;
    event.preventDefault();
    const place = rows.indexOf(Number(link.dataset.row));
    focusRow(Math.max(0, Math.min(place + by, rows.length - 1)));
  });
  let waiting = 0;
  window.addEventListener('resize', () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => byId('song').redraw?.(), 100);
  });
  window.addEventListener('hashchange', follow);
  drawChoices();
  select();
  drawList();
  if (data.first >= 0) openSong(data.first, false);
  follow();
})();
