'use strict';
(() => {
  const SPAN = 180;   // seconds that the charts show at most
  const STEP = 60;    // they begin with so many, and grow by as many
  const EVERY = 1000; // ms between looks
  const SVG = 'http://www.w3.org/2000/svg';
  // By what they stand for, so that a colour means the same today and tomorrow; others get what their place gives.
  const COLOURS = {'2xx': 1, '3xx': 0, '4xx': 2, '5xx': 3, '1xx': 5, unsent: 7, sendfile: 1, splice: 0, copy: 2, mmap: 3,
    tee: 5, direct: 4, msg_zerocopy: 6, reference: 1, copied: 2, unknown: 7};
  const byId = id => document.getElementById(id);

  // ---- Figures as people read them

  const significant = n => n >= 100 ? n.toFixed(0) : n >= 10 ? n.toFixed(1) : n.toFixed(2);
  const scaled = (n, step, units) => {
    let i = 0;
    while (n >= step && i < units.length - 1) { n /= step; i++; }
    return (i === 0 ? (n < 10 && n % 1 ? n.toFixed(1) : n.toFixed(0)) : significant(n)) + units[i];
  };
  const bytes = n => scaled(n, 1024, [' B', ' KiB', ' MiB', ' GiB', ' TiB', ' PiB']);
  const bytesPerSecond = n => bytes(n) + '/s';
  const count = n => scaled(n, 1000, ['', ' k', ' M', ' G', ' T']);
  const perSecond = n => count(n) + '/s';
  const duration = s => s < 1e-3 ? (s * 1e6).toFixed(0) + ' \u00b5s' : s < 1 ? significant(s * 1e3) + ' ms' : significant(s) + ' s';
  const share = n => (n * 100).toFixed(n < .1 || (n > .9 && n < 1) ? 1 : 0) + ' %';
  const ratio = n => n.toFixed(n !== 0 && n < .1 ? 3 : 2);
  const age = s => {
    const parts = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
    const at = Math.max(0, parts.findIndex(([unit]) => s >= unit));
    const [unit, name] = s >= 1 ? parts[at] : parts[3];
    const rest = parts[at + 1];
    let text = Math.floor(s / unit) + ' ' + name;
    if (s >= 60 && rest && Math.floor(s % unit / rest[0]) > 0) text += ' ' + Math.floor(s % unit / rest[0]) + ' ' + rest[1];
    return text;
  };

  // ---- What is looked at, from one status to the next

  const quantile = (bounds, counts, q) => {
    const all = counts.reduce((sum, n) => sum + n, 0);
    if (all === 0) return null;
    let before = 0;
    for (let i = 0; i < counts.length; i++) {
      if (counts[i] > 0 && before + counts[i] >= q * all) {
        if (i === bounds.length) return bounds[i - 1];
        const low = i > 0 ? bounds[i - 1] : 0;
        return low + (bounds[i] - low) * (q * all - before) / counts[i];
      }
      before += counts[i];
    }
    return bounds[bounds.length - 1];
  };

  const routeBytes = (totals, name) => (totals.receipt.routes[name] || {bytes: 0}).bytes;

  const compare = (then, now) => {
    const seconds = now.now - then.now, a = then.totals, b = now.totals;
    const rate = (x, y) => Math.max(0, y - x) / seconds;
    const moved = b.receipt.bytes - a.receipt.bytes;
    const took = b.durations.counts.map((n, i) => n - a.durations.counts[i]);
    const sample = {
      t: now.now,
      open: b.open,
      accepted: rate(a.connections, b.connections),
      bytes: rate(a.receipt.bytes, b.receipt.bytes),
      copies: moved > 0 ? (b.receipt.copy_bytes - a.receipt.copy_bytes) / moved : null,
      reference: moved > 0 ? (b.receipt.by_reference - a.receipt.by_reference) / moved : null,
      'went by reference': rate(a.receipt.by_reference, b.receipt.by_reference),
      'went copied': rate(a.receipt.copied, b.receipt.copied),
      'went unknown': rate(a.receipt.unknown, b.receipt.unknown),
      cpu: rate(then.cpu_seconds, now.cpu_seconds),
      p50: quantile(b.durations.bounds, took, .5),
      p90: quantile(b.durations.bounds, took, .9),
      p99: quantile(b.durations.bounds, took, .99),
    };
    for (const name of Object.keys(b.receipt.routes)) sample['route ' + name] = rate(routeBytes(a, name), routeBytes(b, name));
    if (b.responses) {
      sample.requests = rate(a.requests, b.requests);
      sample.handshakes = rate(a.tls_handshakes, b.tls_handshakes);
      for (const name of Object.keys(b.responses)) sample['class ' + name] = rate(a.responses[name], b.responses[name]);
    }
    return sample;
  };

  // ---- Charts

  const make = (name, attributes, ...children) => {
    const element = document.createElement(name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    element.append(...children);
    return element;
  };
  const draw = (parent, name, attributes, text) => {
    const element = document.createElementNS(SVG, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };

  // A little above, and easy to halve.
  const roundUp = (n, base) => {
    if (n <= 0) return 1;
    let unit = 1;
    while (unit * base <= n) unit *= base;
    while (unit > n) unit /= base;
    const steps = base === 1024 ? [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024] : [1, 2, 4, 6, 8, 10];
    return unit * steps.find(step => unit * step >= n);
  };

  const samples = [];
  const charts = [];
  let pointedAt = null; // a time that the pointer is at, in every chart

  const colour = ({label}, index) => 'c' + (COLOURS[label.split(' ').pop()] ?? index % 8);

  class Chart {
    // series: () => [{key, label}]. least: the axis does not end below it.
    constructor(id, title, format, series, {stacked = false, base = 10, least = 0} = {}) {
      Object.assign(this, {title, format, series, stacked, base, least});
      this.caption = make('figcaption', {});
      this.svg = document.createElementNS(SVG, 'svg');
      this.svg.setAttribute('role', 'img');
      byId('charts').append(make('figure', {id: 'chart-' + id}, this.caption, this.svg));
      this.svg.addEventListener('pointermove', event => {
        const box = this.svg.getBoundingClientRect();
        pointedAt = this.end - (box.right - event.clientX) / box.width * this.span;
        redraw();
      });
      this.svg.addEventListener('pointerleave', () => { pointedAt = null; redraw(); });
      charts.push(this);
    }

    draw(end, span) {
      const series = this.series(), box = this.svg.getBoundingClientRect();
      const width = Math.max(120, box.width), height = Math.max(60, box.height), foot = height - 18, top = 14;
      this.end = end;
      this.span = span;
      const shown = samples.filter(sample => sample.t >= end - span - 2);
      const total = sample => series.reduce((sum, {key}) => sum + (sample[key] || 0), 0);
      const highest = Math.max(this.least, 0, ...shown.map(sample =>
        this.stacked ? total(sample) : Math.max(0, ...series.map(({key}) => sample[key] || 0))));
      const most = roundUp(highest, this.base);
      const x = t => width - (end - t) / span * width, y = value => foot - value / most * (foot - top);

      this.svg.replaceChildren();
      this.svg.setAttribute('viewBox', '0 0 ' + width + ' ' + height);
      for (const part of [0, .5, 1])
        draw(this.svg, 'line', {class: 'grid', x1: 0, x2: width, y1: y(most * part), y2: y(most * part)});
      const number = v => v.toFixed(1);
      const below = new Map(); // of stacked areas, by time
      series.forEach((one, index) => {
        const {key} = one, kind = colour(one, index);
        if (this.stacked) {
          const up = [], down = [];
          for (const sample of shown) {
            const low = below.get(sample.t) || 0, high = low + (sample[key] || 0);
            up.push(number(x(sample.t)) + ',' + number(y(high)));
            down.unshift(number(x(sample.t)) + ',' + number(y(low)));
            below.set(sample.t, high);
          }
          if (up.length > 1) draw(this.svg, 'path', {class: 'area ' + kind, d: 'M' + [...up, ...down].join('L') + 'Z'});
          return;
        }
        let path = '', under = '', from = null, last = null;
        const close = () => {
          if (from !== null) under += 'L' + number(last) + ',' + foot + 'L' + number(from) + ',' + foot + 'Z';
          from = null;
        };
        for (const sample of shown) {
          if (sample[key] === null || sample[key] === undefined) { close(); continue; }
          const point = number(x(sample.t)) + ',' + number(y(sample[key]));
          path += (from === null ? 'M' : 'L') + point;
          under += (from === null ? 'M' + number(x(sample.t)) + ',' + foot + 'L' : 'L') + point;
          if (from === null) from = x(sample.t);
          last = x(sample.t);
        }
        close();
        if (series.length === 1 && under) draw(this.svg, 'path', {class: 'under ' + kind, d: under});
        if (path) draw(this.svg, 'path', {class: 'line ' + kind, d: path});
      });
      draw(this.svg, 'text', {x: 2, y: y(most) - 3}, this.format(most));
      draw(this.svg, 'text', {x: 2, y: y(most / 2) - 3}, this.format(most / 2));
      for (let part = 0; part <= 3; part++)
        draw(this.svg, 'text', {x: width * part / 3, y: height - 4, 'text-anchor': ['start', 'middle', 'middle', 'end'][part]},
          part < 3 ? '\u2212' + age(span * (3 - part) / 3) : 'now');

      let at = shown[shown.length - 1];
      if (pointedAt !== null && shown.length > 0) {
        at = shown.reduce((best, sample) => Math.abs(sample.t - pointedAt) < Math.abs(best.t - pointedAt) ? sample : best);
        draw(this.svg, 'line', {class: 'cross', x1: x(at.t), x2: x(at.t), y1: top, y2: foot});
      }
      const legend = series.map((one, index) => {
        const {key, label} = one;
        const value = at && at[key] !== null && at[key] !== undefined ? this.format(at[key]) : '\u2013';
        return make('span', {class: colour(one, index), 'data-key': key}, make('i', {}, label + ' ' + value));
      });
      this.caption.replaceChildren(make('b', {}, this.title), ...legend);
      this.svg.setAttribute('aria-label', this.title + ': ' + legend.map(item => item.textContent).join(', '));
    }
  }

  const redraw = () => {
    if (samples.length === 0) return;
    const end = samples[samples.length - 1].t;
    const span = Math.min(SPAN, Math.max(1, Math.ceil((end - samples[0].t) / STEP)) * STEP);
    for (const chart of charts) chart.draw(end, span);
  };

  // ---- Tiles and tables

  const tiles = {};
  const tile = (id, label, value, more) => {
    if (!tiles[id]) {
      const parts = {output: make('output', {id: 'tile-' + id}), small: make('small', {})};
      byId('tiles').append(make('div', {class: 'tile'}, make('span', {}, label), parts.output, parts.small));
      tiles[id] = parts;
    }
    tiles[id].output.textContent = value;
    tiles[id].small.textContent = more;
  };

  // columns: [title, text?]. rows: of cells.
  const fill = (id, columns, rows) => {
    const table = byId(id);
    const cells = (name, row) => row.map((cell, i) =>
      make(name, {...(columns[i][1] ? {class: 'text'} : {}), ...(name === 'th' ? {scope: 'col'} : {})}, cell));
    table.replaceChildren(make('thead', {}, make('tr', {}, ...cells('th', columns.map(column => column[0])))),
      make('tbody', {}, ...rows.map(row => make('tr', {}, ...cells('td', row)))));
    table.closest('section').hidden = rows.length === 0;
  };

  let configured = '';
  const showConfiguration = configuration => {
    const text = JSON.stringify(configuration);
    if (text === configured) return; // it can be read, and marked, in peace
    configured = text;
    const plain = value => value === null ? '\u2013' : value === true ? 'yes' : value === false ? 'no' :
      Array.isArray(value) ? value.join(', ') || '\u2013' : typeof value !== 'object' ? String(value) :
      Object.entries(value).map(([name, one]) => name + ' ' + plain(one)).join(', ');
    fill('configuration', [['Option', true], ['Value (times in seconds, sizes in bytes)', true]],
      Object.entries(configuration).map(([name, value]) => [name, plain(value)]));
  };

  const show = (then, status) => {
    const totals = status.totals, sample = samples[samples.length - 1];
    document.title = status.program;
    byId('program').textContent = status.program;
    byId('about').textContent = status.about;
    if (sample) {
      tile('throughput', 'Throughput', bytesPerSecond(sample.bytes), bytes(totals.receipt.bytes) + ' in all');
      if (totals.responses)
        tile('requests', 'Requests', perSecond(sample.requests), count(totals.requests) + ' in all');
      tile('connections', 'Connections', count(sample.open), count(totals.connections) + ' in all');
      tile('copies', 'Copies per byte', sample.copies === null ? '\u2013' : ratio(sample.copies),
        totals.receipt.bytes ? ratio(totals.receipt.copy_bytes / totals.receipt.bytes) + ' since the start' : '');
      tile('reference', 'By reference', sample.reference === null ? '\u2013' : share(sample.reference),
        totals.receipt.bytes ? share(totals.receipt.by_reference / totals.receipt.bytes) + ' since the start' : '');
      if (totals.tls_handshakes)
        tile('tls', 'TLS handshakes', perSecond(sample.handshakes), count(totals.tls_handshakes) + ' in all, ' +
          share(totals.tls_resumed / totals.tls_handshakes) + ' resumed');
      tile('cpu', 'CPU', share(sample.cpu), status.cpu_seconds.toFixed(1) + ' s in all');
      tile('errors', totals.responses ? 'Failed responses' : 'Failed connections', count(totals.failures),
        totals.timeouts + ' timeouts, ' + totals.accept_failures + ' not accepted');
    }
    const before = new Map((then ? then.workers : []).map(worker => [worker.pid, worker]));
    fill('workers', [['Worker'], ['Process'], ['Up'], ['CPU'], ['Connections'],
        [totals.responses ? 'Requests' : 'Accepted'], ['Bytes'], ['Copies per byte']],
      status.workers.map(worker => {
        const old = before.get(worker.pid), own = worker.totals;
        const cpu = old ? Math.max(0, worker.cpu_seconds - old.cpu_seconds) / (status.now - then.now) : 0;
        return [worker.index + (worker.reloads < status.reloads ? ' (drains)' : ''), String(worker.pid),
          age(worker.up_seconds), share(cpu), count(own.open), count(totals.responses ? own.requests : own.connections),
          bytes(own.receipt.bytes), own.receipt.bytes ? ratio(own.receipt.copy_bytes / own.receipt.bytes) : '\u2013'];
      }));
    fill('services', [['Service', true], ['Connections'], ['Accepted'], ['Bytes'], ['Waiting'], ['Servers', true]],
      (totals.services || []).map(service => [service.name, count(service.open), count(service.connections),
        bytes(service.bytes), count(service.waiting),
        service.servers.map(server => server.name + (server.up ? '' : ' (down)') + ': ' + server.open).join(', ')]));
    fill('fallbacks', [['From', true], ['To', true], ['Error', true], ['Reason', true], ['Times']],
      totals.fallbacks.map(change => [change.from || 'others', change.to || '', change.error || '\u2013',
        change.reason || '', count(change.count)]));
    showConfiguration(status.configuration);
  };

  const addCharts = status => {
    const one = (key, label) => () => [{key, label}];
    // Those that there was anything of.
    const known = prefix => () => {
      const keys = new Set();
      for (const sample of samples) for (const key in sample) if (key.startsWith(prefix) && sample[key] > 0) keys.add(key);
      return [...keys].sort().map(key => ({key, label: key.slice(prefix.length)}));
    };
    new Chart('throughput', 'Throughput', bytesPerSecond, one('bytes', ''), {base: 1024});
    new Chart('copies', 'Copies per byte', ratio, one('copies', ''), {least: 1});
    new Chart('went', 'How bytes went', bytesPerSecond, known('went '), {stacked: true, base: 1024});
    new Chart('routes', 'Bytes by route', bytesPerSecond, known('route '), {stacked: true, base: 1024});
    new Chart('latency', status.totals.responses ? 'Time to respond' : 'Time to connect', duration,
      () => [{key: 'p50', label: 'half within'}, {key: 'p90', label: '90 %'}, {key: 'p99', label: '99 %'}], {least: .001});
    new Chart('connections', 'Connections', count, one('open', 'open'), {least: 4});
    new Chart('accepted', 'New connections', perSecond, one('accepted', ''), {least: 4});
    if (status.totals.responses)
      new Chart('responses', 'Responses', perSecond, known('class '), {stacked: true, least: 4});
    new Chart('cpu', 'CPU of the workers', share, one('cpu', ''), {least: .1});
  };

  // ---- Once a second

  let last = null;
  const look = async () => {
    const state = byId('state');
    try {
      const answer = await fetch('status.json', {cache: 'no-store', signal: AbortSignal.timeout(5000)});
      if (!answer.ok) throw new Error('status ' + answer.status);
      const status = await answer.json();
      if (charts.length === 0) addCharts(status);
      if (last && (status.up_seconds < last.up_seconds || status.program !== last.program)) { // another process answers
        samples.length = 0;
        last = null;
      }
      if (!last || status.now > last.now) {
        if (last) samples.push(compare(last, status));
        while (samples.length > 0 && samples[0].t < status.now - SPAN - 10) samples.shift();
        show(last, status);
        last = status;
      }
      redraw();
      state.className = '';
      state.textContent = 'sluice ' + status.version + ', up ' + age(status.up_seconds) + ', ' + status.workers.length +
        (status.workers.length === 1 ? ' worker' : ' workers');
    } catch (error) {
      state.className = 'bad';
      state.textContent = 'no answer' + (last ? ' since ' + new Date(last.now * 1000).toLocaleTimeString() : '');
    }
    setTimeout(look, EVERY);
  };
  new ResizeObserver(redraw).observe(byId('charts'));
  look();
})();
