'use strict';
// The page is whole without this. It adds: times as they are here, and a filter for long lists.
(() => {
  const rows = [...document.querySelectorAll('tbody tr:not(.up)')];
  const two = n => String(n).padStart(2, '0');
  for (const time of document.querySelectorAll('tbody time')) {
    const at = new Date(time.dateTime);
    if (isNaN(at)) continue;
    time.title = time.textContent + ' UTC';
    time.textContent = at.getFullYear() + '-' + two(at.getMonth() + 1) + '-' + two(at.getDate()) + ' ' +
      two(at.getHours()) + ':' + two(at.getMinutes());
  }
  const zone = document.getElementById('zone');
  if (zone) zone.hidden = true;

  const filter = document.getElementById('filter');
  const about = document.getElementById('about');
  if (!filter || rows.length < 2) return;
  const all = about.textContent;
  const names = rows.map(row => row.cells[0].textContent.toLowerCase());
  const apply = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      const fits = words.every(word => names[i].includes(word));
      row.hidden = !fits;
      shown += fits;
    });
    about.textContent = words.length ? shown + ' of ' + rows.length + ' shown' : all;
  };
  filter.hidden = false;
  filter.addEventListener('input', apply);
  filter.addEventListener('keydown', event => {
    if (event.key === 'Escape') { filter.value = ''; apply(); }
  });
  if (filter.value) apply(); // a browser keeps what was typed over going back
})();
